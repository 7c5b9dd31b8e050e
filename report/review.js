"use strict";
// The gallery and the review of one image at a time. Decisions go to the server that served this page, or, in a page
// opened as a file, stay in the browser until they are saved as CSV.
const find = (id) => document.getElementById(id);
const page = JSON.parse(find("rows").textContent);
const column = Object.fromEntries(page.header.map((name, at) => [name, at]));
const suspects = page.rows.map((row, at) => {
  const get = (name) => row[column[name]] ?? "";
  const image = (get("id") ? "id " + get("id") : get("path") ? "path " + get("path") : "content " + get("content"))
    + "\n" + get("given_label");  // a table may list a file under two labels
  return {
    row, at, image, given: get("given_label"), suggested: get("predicted_label"), truth: get("true_label"),
    forTesting: get("split") === "test",
    p: Number(get("label_score")), sure: Number(get("predicted_probability")),
    kept: get("is_label_issue") === "False" && !(image in page.decisions),  // in the sample or a copy
    path: get("path"), content: get("content"), name: get("id") || get("path").split("/").pop() || "image " + get("index"),
  };
});
const sample = new Set(page.sample);  // images at equal distances in the list of all labels
const byContent = new Map();  // images with the same file or pixels
for (const suspect of suspects)
  if (suspect.content) byContent.set(suspect.content, [...(byContent.get(suspect.content) ?? []), suspect]);
const copiesOf = (suspect) => (byContent.get(suspect.content) ?? []).filter((other) => other !== suspect);
const shownNames = new Map(page.classes.map((label, k) => [label, page.shown[k]]));
const shownAs = (label) => shownNames.get(label) ?? label;  // "3 (cat)" where the labels are numbers
const none = {decision: "", new_label: ""};
const PIECE = 60;  // cards added at a time

// --- decisions: image -> {decision: right, wrong or "", new_label}

const decided = new Map(Object.entries(page.decisions));
const decisionOf = (suspect) => decided.get(suspect.image) ?? none;
const isReviewed = (suspect) => Boolean(decisionOf(suspect).decision);
const same = (a, b) => a.decision === b.decision && a.new_label === b.new_label;
let storage = null;
try { storage = page.server ? null : window.localStorage; } catch { /* a browser that keeps nothing for local files */ }
let local = new Map();  // what was decided in this page: image -> {decision, new_label, base}
function readStorage() {  // again before each change, since another tab may have the same page
  const stored = new Map(JSON.parse(storage?.getItem(page.run) ?? "[]"));
  if (storage) local = stored;
  for (const [image, kept] of local) {
    const base = page.decisions[image] ?? none;
    if (same(kept.base, base) && !same(kept, base)) decided.set(image, kept);
    else local.delete(image);  // the run has a decision of its own since then
  }
}
readStorage();

let unsaved = 0, saving = Promise.resolve();
function say(text, bad) {
  for (const id of ["saved", "review-saved"]) { find(id).textContent = text; find(id).classList.toggle("bad", Boolean(bad)); }
}
async function post(body) {
  for (let wait = 500; ; wait = Math.min(2 * wait, 8000)) {
    try {
      const answer = await fetch("decide", {method: "POST", body: JSON.stringify(body)});
      if (answer.ok) break;
      if (answer.status === 404) return say("not saved: the review was started again; save your decisions as CSV, then open its new address", true);
      say("not saved: " + await answer.text(), true);
      if (answer.status < 500) return;
    } catch { say("not saved: the server does not answer; trying again", true); }
    await new Promise((done) => setTimeout(done, wait));
  }
  unsaved -= 1;
  if (!unsaved) say("all decisions are saved");
}
function decide(suspect, decision, new_label = "") {
  const kept = {decision, new_label};
  decided.set(suspect.image, kept);
  if (page.server) {
    unsaved += 1;
    saving = saving.then(() => post({image: suspect.image, ...kept}));
  } else {
    readStorage();
    decided.set(suspect.image, kept);
    local.set(suspect.image, {...kept, base: page.decisions[suspect.image] ?? none});
    try { storage?.setItem(page.run, JSON.stringify([...local])); }
    catch { storage = null; say("this browser keeps no more decisions: save them as CSV before you close the page", true); }
  }
  for (const card of find("cards").children) {
    const other = shown[card.dataset.at];
    if (other.image === suspect.image || copiesOf(suspect).includes(other)) mark(card);
  }
  count();
}
addEventListener("storage", ({key}) => {  // another tab with this page
  if (key !== page.run || !storage) return;
  readStorage();
  for (const card of find("cards").children) mark(card);
  count();
});
addEventListener("beforeunload", (event) => { if (unsaved) event.preventDefault(); });

// "given → suggestion", or that the label is a suspect although no other class fits better
function pairOf({given, suggested, kept}) {
  if (given === suggested) return shownAs(given) + (kept ? "" : " (no class fits better)");
  return shownAs(given) + " → " + shownAs(suggested);
}
function copiesInWords(suspect) {
  const copies = copiesOf(suspect), rest = copies.length > 3 ? `, … (${copies.length} in all)` : "";
  if (!copies.length) return "";
  const one = (other) => `${other.name} (${[shownAs(other.given), inWords(other)].filter(Boolean).join(", ")})`;
  return "identical: " + copies.slice(0, 3).map(one).join(", ") + rest;
}
function inWords(suspect) {
  const {decision, new_label} = decisionOf(suspect);
  return decision === "wrong" && new_label ? "is " + shownAs(new_label) : decision && "label is " + decision;
}

// --- images: 100 to a piece of the page, or one by one from the server

const pieces = new Map();
function thumbnail(suspect) {
  if (page.server) return "image?of=" + encodeURIComponent(suspect.image);
  const number = Math.floor(suspect.at / page.piece);
  if (!pieces.has(number)) pieces.set(number, find("images-" + number).textContent.trim().split("\n"));
  return pieces.get(number)[suspect.at % page.piece];
}
function large(suspect) {
  if (page.server) return thumbnail(suspect) + "&large";
  if (!page.root || !suspect.path) return thumbnail(suspect);
  return [page.root, suspect.path].join("/").split("/").map(encodeURIComponent).join("/");
}

// --- the gallery

let shown = [];  // suspects in the order of the list
const watcher = new IntersectionObserver((seen) => { if (seen[0].isIntersecting) more(); }, {rootMargin: "800px"});
const pairs = new Map();
for (const {given, suggested} of suspects) {
  const pair = given + "\n" + suggested;
  pairs.set(pair, (pairs.get(pair) ?? 0) + 1);
}
const byText = new Intl.Collator(undefined, {numeric: true}).compare;
const orders = {
  p: () => 0,  // as they come
  sure: (a, b) => (b.given !== b.suggested) - (a.given !== a.suggested) || b.sure - b.p - (a.sure - a.p),
  turn: (a, b) => a.rank - b.rank,  // the worst of each class, then the second of each, …
  given: (a, b) => byText(a.given, b.given),
  pair: (a, b) => pairs.get(b.given + "\n" + b.suggested) - pairs.get(a.given + "\n" + a.suggested)
    || byText(a.given, b.given) || byText(a.suggested, b.suggested),
};
const lists = {
  all: (s) => !s.kept || isReviewed(s),
  open: (s) => !s.kept && !isReviewed(s),
  sample: (s) => sample.has(s.image) && !isReviewed(s),
  copies: (s) => copiesOf(s).some((other) => other.given !== s.given),  // reviewed ones too, to compare them
  reviewed: isReviewed,
};
const together = (s) => (find("which").value === "copies" ? byContent.get(s.content)[0].at : 0);
function list() {
  const [given, suggested, which] = ["given", "suggested", "which"].map((id) => find(id).value);
  shown = suspects.filter((s) => (!given || s.given === given.slice(1)) && (!suggested || s.suggested === suggested.slice(1))
    && lists[which](s));
  const ofClass = new Map();  // given label -> how many so far; they come worst first
  for (const suspect of shown) {
    suspect.rank = ofClass.get(suspect.given) ?? 0;
    ofClass.set(suspect.given, suspect.rank + 1);
  }
  shown.sort((a, b) => together(a) - together(b) || orders[find("order").value](a, b) || a.at - b.at);
  find("cards").replaceChildren();
  more();
  count();
}
function more() {
  const start = find("cards").children.length;
  find("cards").append(...shown.slice(start, start + PIECE).map((suspect, k) => card(suspect, start + k)));
  watcher.unobserve(find("end"));
  if (start + PIECE < shown.length) watcher.observe(find("end"));  // tells at once whether it is in sight
}
function element(tag, properties = {}, ...children) {
  const {dataset, ...rest} = properties;
  const made = Object.assign(document.createElement(tag), rest);
  Object.assign(made.dataset, dataset ?? {});
  made.append(...children);
  return made;
}
function card(suspect, at) {
  const what = pairOf(suspect);
  const image = element("button", {className: "open", type: "button", title: "large, one at a time"},
    element("img", {alt: what, src: thumbnail(suspect), loading: "lazy"}));
  const choices = [["right", suspect.given], ["wrong", "wrong"], ["suggestion", suspect.suggested]];
  const buttons = choices.filter(([value]) => value !== "suggestion" || suspect.given !== suspect.suggested).map(
    ([value, text]) => element("button", {type: "button", value, className: "choice",
      textContent: value === "wrong" ? "not " + shownAs(suspect.given) : "is " + shownAs(text)}));
  const made = element("article", {dataset: {at}}, image, element("p", {}, element("b", {textContent: what})),
    element("p", {className: "soft", textContent: "p_clean " + suspect.p.toFixed(3) + " · " + Math.round(100 * suspect.sure) + "\u00a0%"
      + (suspect.truth && " · is " + shownAs(suspect.truth)) + (suspect.forTesting ? " · for testing" : "")}),
    element("p", {className: "soft file", title: suspect.path}, suspect.name,
      element("span", {className: "copies"})), ...buttons,
    element("p", {className: "said"}));
  made.setAttribute("aria-label", suspect.name + ": " + what);
  mark(made, suspect);
  return made;
}
function mark(card, suspect = shown[card.dataset.at]) {
  const {decision, new_label} = decisionOf(suspect);
  card.className = decision;
  const chosen = decision === "wrong" && new_label ? (new_label === suspect.suggested ? "suggestion" : "") : decision;
  for (const button of card.querySelectorAll(".choice")) button.setAttribute("aria-pressed", button.value === chosen);
  card.querySelector(".said").textContent = inWords(suspect);
  card.querySelector(".copies").textContent = copiesInWords(suspect);
}
function count() {
  const which = find("which").value;
  const all = suspects.filter(which === "sample" ? (s) => sample.has(s.image) : which === "copies" ? lists.copies : lists.all);
  const done = all.filter(isReviewed);
  const wrong = done.filter((s) => decisionOf(s).decision === "wrong").length;
  find("count").textContent = `${shown.length} shown; reviewed: ${done.length} of ${all.length}, `
    + `${wrong} wrong, ${done.length - wrong} right`;
  find("export").disabled = !suspects.some(toExport);
  find("start").disabled = !shown.length;
}
// of a page that is a file, only what was decided in it: the run has the others, and may have changed them since
const toExport = (suspect) => (page.server ? decided : local).has(suspect.image);
find("cards").addEventListener("click", ({target}) => {
  const button = target.closest("button");
  if (!button) return;
  const at = Number(button.closest("article").dataset.at), suspect = shown[at];
  if (button.className === "open") return open(at);
  if (button.getAttribute("aria-pressed") === "true") decide(suspect, "");  // a second press takes it back
  else choose(suspect, button.value);
});
find("copies").hidden = !suspects.some(lists.copies);
function choose(suspect, value) {
  if (value !== "suggestion") return decide(suspect, value);
  if (suspect.suggested !== suspect.given) decide(suspect, "wrong", suspect.suggested);
}
for (const side of ["given", "suggested"]) {
  const numbers = new Map();
  for (const suspect of suspects.filter(lists.all)) numbers.set(suspect[side], (numbers.get(suspect[side]) ?? 0) + 1);
  for (const name of [...numbers.keys()].sort(byText))
    find(side).append(element("option", {value: "=" + name, textContent: `${shownAs(name)} (${numbers.get(name)})`}));
}
for (const id of ["given", "suggested", "which", "order"]) find(id).addEventListener("change", list);

find("export").addEventListener("click", () => {
  const quote = (field) => /[",\r\n]/.test(field) ? '"' + field.replaceAll('"', '""') + '"' : field;
  const lines = suspects.filter(toExport)  // those taken back, too
    .map((s) => [...s.row, decisionOf(s).decision || "undecided", decisionOf(s).new_label]);
  const text = [[...page.header, "decision", "new_label"], ...lines].map((line) => line.map(quote).join(",") + "\n").join("");
  const link = element("a", {href: URL.createObjectURL(new Blob([text], {type: "text/csv"})), download: page.name});
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
});

// --- the nearest images of the given and of the suggested class, where there are image features

async function nearest(suspect) {
  const [box, sides] = [find("near"), ["given", "suggested"]];
  box.hidden = true;
  let near = page.near[suspect.image], source = (k) => uris[k];
  const uris = find("nearest")?.textContent.trim().split("\n");
  if (page.server) {
    try { near = await (await fetch("near?of=" + encodeURIComponent(suspect.image))).json(); } catch { return; }
    source = (image) => "image?of=" + encodeURIComponent(image);
  }
  if (!near || current() !== suspect) return;
  sides.forEach((side, k) => {
    find("near-" + side).textContent = shownAs(suspect[side]);
    box.querySelectorAll(".near")[k].replaceChildren(
      ...(near[side] ?? []).map((image) => element("img", {src: source(image), alt: suspect[side]})));
    box.querySelectorAll("h3")[k].hidden = !near[side]?.length;
  });
  box.hidden = !sides.some((side) => near[side]?.length);
}

// --- one image at a time

let queue = [], place = 0, past = [];  // past: [suspect, what was decided before], for undo
const dialog = find("review");
const current = () => queue[place];
function open(at) {
  queue = [...shown];
  past = [];
  place = at;
  dialog.showModal();
  look();
}
function look(said = "") {
  const suspect = current(), picture = find("picture");
  picture.onerror = () => { picture.onerror = null; picture.src = thumbnail(suspect); };
  picture.onload = () => {  // a picture of 32 pixels is not recognised at a thousand
    picture.classList.toggle("pixels", picture.naturalWidth < 24);
    picture.style.maxWidth = `${12 * picture.naturalWidth}px`;
    picture.style.maxHeight = `min(100%, ${12 * picture.naturalHeight}px)`;
  };
  picture.removeAttribute("src");  // else the image before it stays until this one has loaded
  picture.src = large(suspect);
  picture.alt = pairOf(suspect);
  find("is-given").textContent = shownAs(suspect.given);
  find("is-suggested").textContent = suspect.given === suspect.suggested ? "no other class" : shownAs(suspect.suggested);
  find("facts").textContent = `p_clean ${suspect.p.toFixed(3)}, suggestion ${Math.round(100 * suspect.sure)} %`
    + (suspect.truth && `; the truth is ${shownAs(suspect.truth)}`)
    + (suspect.forTesting ? "; held out for testing" : "");
  find("review-file").textContent = suspect.path || suspect.name;
  find("review-copies").textContent = copiesInWords(suspect);
  find("review-said").textContent = inWords(suspect) || "not reviewed";
  for (const button of dialog.querySelectorAll("[data-do=suggestion]")) button.disabled = suspect.given === suspect.suggested;
  find("undo").disabled = !past.length;
  const done = queue.filter((s) => decisionOf(s).decision).length;
  find("progress").max = queue.length;
  find("progress").value = done;
  find("place").textContent = `${place + 1} of ${queue.length}, ${done} reviewed`;
  find("status").textContent = (said && said + ". ") + `Image ${place + 1}: given ${shownAs(suspect.given)}, suggestion ${shownAs(suspect.suggested)}`;
  find("search").value = "";
  matches();
  for (const next of queue.slice(place + 1, place + 3)) new Image().src = large(next);  // ready when they are needed
  nearest(suspect);
  find("picture-frame").focus();
}
function step(by) {
  place = Math.min(Math.max(place + by, 0), queue.length - 1);
  look();
}
function toNext() {  // the next one not reviewed, else any before it, else stay
  const open = queue.findIndex((s, k) => k > place && !decisionOf(s).decision);
  const before = queue.findIndex((s) => !decisionOf(s).decision);
  place = open >= 0 ? open : before >= 0 ? before : place;
}
function settle(act) {
  const suspect = current();
  past.push([suspect, decisionOf(suspect)]);
  act(suspect);
  const said = suspect.name + ": " + inWords(suspect);
  toNext();
  look(queue.every((s) => decisionOf(s).decision) ? said + ". All of this list are reviewed" : said);
}
const actions = {
  right: () => settle((suspect) => decide(suspect, "right")),
  wrong: () => settle((suspect) => decide(suspect, "wrong")),
  suggestion: () => { if (current().given !== current().suggested) settle((suspect) => choose(suspect, "suggestion")); },
  next: () => step(1),
  back: () => step(-1),
  skip: () => {  // to the end of the list
    queue.push(...queue.splice(place, 1));
    place = Math.min(place, queue.length - 1);
    look("skipped");
  },
  undo: () => {
    if (!past.length) return;
    const [suspect, before] = past.pop();
    decide(suspect, before.decision, before.new_label);
    place = queue.indexOf(suspect);
    look("taken back");
  },
  search: () => find("search").focus(),
  close: () => dialog.close(),
};
const keys = {r: "right", w: "wrong", s: "suggestion", u: "undo", n: "next", ArrowRight: "next", p: "back",
  ArrowLeft: "back", k: "skip", "/": "search", c: "search"};
dialog.addEventListener("click", ({target}) => actions[target.closest("[data-do]")?.dataset.do]?.());
dialog.addEventListener("keydown", (event) => {
  if (event.target === find("search") || event.ctrlKey || event.metaKey || event.altKey) return;
  const action = actions[keys[event.key.length === 1 ? event.key.toLowerCase() : event.key]];
  if (!action) return;
  event.preventDefault();
  if (event.repeat && action !== actions.next && action !== actions.back) return;  // a key held down decides about one image
  action();
});
dialog.addEventListener("close", list);
find("start").addEventListener("click", () => open(0));

// the search box over all classes: a combobox whose first match Enter takes

let active = 0, found = [];
function matches() {
  const text = find("search").value.trim().toLowerCase();
  const starts = (name) => [name, shownAs(name).slice(name.length + 2)].some((word) => word.toLowerCase().startsWith(text));
  found = !text ? [] : page.classes.filter((name) => shownAs(name).toLowerCase().includes(text))
    .sort((a, b) => starts(b) - starts(a) || byText(a, b)).slice(0, 8);
  active = 0;
  options();
}
function options() {
  find("found-classes").replaceChildren(...found.map((name, k) => {
    const option = element("li", {id: "class-" + k, textContent: shownAs(name)});
    option.setAttribute("role", "option");
    option.setAttribute("aria-selected", k === active);
    return option;
  }));
  find("found-classes").hidden = !found.length;
  find("search").setAttribute("aria-expanded", found.length > 0);
  find("search").setAttribute("aria-activedescendant", found.length ? "class-" + active : "");
  find("no-class").hidden = found.length > 0 || !find("search").value.trim();
}
function take(name) {
  settle((suspect) => name === suspect.given ? decide(suspect, "right") : decide(suspect, "wrong", name));
}
find("search").addEventListener("input", matches);
find("search").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && found.length) take(found[active]);
  else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    active = Math.min(Math.max(active + (event.key === "ArrowDown" ? 1 : -1), 0), Math.max(found.length - 1, 0));
    options();
  } else if (event.key === "Escape") {
    find("search").value = "";
    matches();
    find("picture-frame").focus();
  } else return;
  event.preventDefault();
});
find("found-classes").addEventListener("click", ({target}) => {
  const option = target.closest("li");
  if (option) take(found[Number(option.id.slice("class-".length))]);
});

const nav = document.querySelector("nav");
const sticks = () => getComputedStyle(nav).position === "sticky";
const measure = () => document.documentElement.style.setProperty("--nav", (sticks() ? nav.offsetHeight : 0) + "px");
addEventListener("resize", measure);
measure();
list();
