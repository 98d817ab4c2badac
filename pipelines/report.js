(() => {
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const namespace = document.getElementById("namespace").namespaceURI;
const $ = (id) => document.getElementById(id);
const ROWS = 8;
const CARRIERS = 6;

// Nothing from the data becomes markup: text goes in as text nodes, colours come from the palette.
function element(tag, className, ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children.filter((child) => child !== null));
  return node;
}

function shape(tag, attributes) {
  const node = document.createElementNS(namespace, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

function button(className, onClick, ...children) {
  const node = element("button", className, ...children);
  node.type = "button";
  node.addEventListener("click", onClick);
  return node;
}

const percent = (share) => (share > 0 && share < 0.01 ? "<1%" : `${Math.round(100 * share)}%`);
const seconds = (time) => `${time.toFixed(time < 100 ? 2 : 1)} s`;
const signed = (value) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(2);
const plural = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

// Colours: every lap through the palette has its own texture, so that rare entities stay apart as well.

const TEXTURES = ["plain", "striped", "dotted", "barred"];
const colourIndex = (entity) => data.entities[entity].slot % data.palette.length;
const textureOf = (entity) => TEXTURES[Math.floor(data.entities[entity].slot / data.palette.length) % TEXTURES.length];
const colour = (entity) => data.palette[colourIndex(entity)];
const paint = (entity) => (textureOf(entity) === "plain" ? colour(entity) : `url(#${textureOf(entity)}-${colourIndex(entity)})`);

function defineTextures() {
  // Patterns live in units of patches: a fixed share of the frame keeps them alike on coarse and fine grids.
  const unit = (data.cards.length ? data.cards[0].grid[1] : 8) / 26;
  const marks = {
    striped: () => shape("rect", { width: 0.36 * unit, height: unit, fill: "#fff" }),
    dotted: () => shape("circle", { cx: 0.5 * unit, cy: 0.5 * unit, r: 0.25 * unit, fill: "#fff" }),
    barred: () => shape("rect", { width: unit, height: 0.3 * unit, fill: "#16181c" }),
  };
  for (const [name, mark] of Object.entries(marks)) {
    data.palette.forEach((tone, index) => {
      const pattern = shape("pattern", { id: `${name}-${index}`, width: unit, height: unit, patternUnits: "userSpaceOnUse" });
      if (name === "striped") pattern.setAttribute("patternTransform", "rotate(45)");
      pattern.append(shape("rect", { width: unit, height: unit, fill: tone }), mark());
      $("textures").append(pattern);
    });
  }
}

function swatch(entity) {
  const node = element("i", `swatch ${textureOf(entity)}`);
  node.style.setProperty("--c", colour(entity));
  return node;
}

// Geometry: regions as runs of patches, borders as unit segments of the patch grid.

function regionPath(map, width, wanted) {
  let path = "";
  for (let start = 0; start < map.length; start++) {
    if (!wanted(map[start])) continue;
    const row = Math.floor(start / width);
    let end = start;
    while (end + 1 < (row + 1) * width && wanted(map[end + 1])) end++;
    path += `M${start % width} ${row}h${end - start + 1}v1h${start - end - 1}z`;
    start = end;
  }
  return path;
}

function borderPath(map, width, group, where) {
  let path = "";
  map.forEach((region, patch) => {
    const x = patch % width, y = Math.floor(patch / width);
    if (x > 0 && where(group(map[patch - 1]), group(region), map[patch - 1], region)) path += `M${x} ${y}v1`;
    if (y > 0 && where(group(map[patch - width]), group(region), map[patch - width], region)) path += `M${x} ${y}h1`;
  });
  return path;
}

function outlinePath(map, width, wanted) {
  const height = map.length / width;
  const inside = (x, y) => x >= 0 && y >= 0 && x < width && y < height && wanted(map[y * width + x]);
  let path = "";
  for (let y = 0; y <= height; y++) {
    for (let x = 0; x <= width; x++) {
      if (inside(x - 1, y) !== inside(x, y)) path += `M${x} ${y}v1`;
      if (inside(x, y - 1) !== inside(x, y)) path += `M${x} ${y}h1`;
    }
  }
  return path;
}

const best = (frame, region) => frame.top[region][0][0];

function sharesOf(card) {
  const shares = new Map();
  card.frames.forEach((frame, index) => {
    for (const region of frame.map) {
      const entity = best(frame, region);
      if (!shares.has(entity)) shares.set(entity, new Array(card.frames.length).fill(0));
      shares.get(entity)[index] += 1 / frame.map.length;
    }
  });
  return shares;
}

// One card. Heads are made at once, bodies when they come near the window.

class Card {
  constructor(content, index) {
    Object.assign(this, content);
    this.shares = sharesOf(content);
    this.total = (entity) => (this.shares.get(entity) || []).reduce((sum, share) => sum + share, 0);
    this.found = [...this.shares.keys()].sort((a, b) => this.total(b) - this.total(a) || a - b);
    const strongest = [...this.carriers].sort((a, b) => Math.abs(b.effect) - Math.abs(a.effect)).slice(0, CARRIERS);
    this.strongest = new Set(strongest.map((carrier) => carrier.entity));
    // Only these are drawn in full: hundreds of small entities side by side would be confetti.
    this.main = new Set([...this.strongest, ...this.found.slice(0, ROWS)]);
    this.searchable = [this.id, this.label, this.predicted, ...this.found.map((e) => data.entities[e].name)].join("\n").toLowerCase();
    this.body = element("div", "body");
    this.node = element("article", "card", this.head(), this.body);
    this.node.id = `video-${index}`;
    this.node.tabIndex = -1;
    this.node.dataset.video = this.id;
    this.views = [];
    this.rows = [];
    this.built = false;
  }

  head() {
    const sure = this.top.length ? ` (${percent(this.top[0][1])})` : "";
    const verdict = this.correct === null ? element("span", "verdict muted", `predicted: ${this.predicted}${sure}`)
      : this.correct ? element("span", "verdict right", `✓ right${sure}`)
      : element("span", "verdict wrong", `✗ wrong: ${this.predicted}${sure}`);
    const file = this.split ? `${this.id} · ${this.split}` : this.id;
    return element("header", "", element("h3", "", this.label === null ? "no label" : this.label), verdict, element("span", "file", file));
  }

  build() {
    if (this.built) return;
    this.built = true;
    const frames = element("div", "frames");
    this.frames.forEach((frame, index) => frames.append(this.frame(frame, index)));
    const left = element("div", "", frames, this.note ? element("p", "hint", this.note) : null);
    this.body.append(left, element("aside", "", this.probabilities(), this.carrierPanel()), this.strip());
    this.show(null);
  }

  frame(frame, index) {
    const [height, width] = this.grid;
    const group = (region) => best(frame, region);
    const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", "aria-hidden": "true" });
    const fills = [...new Set(frame.map.map(group))].map((entity) => {
      const path = regionPath(frame.map, width, (region) => group(region) === entity);
      const fill = shape("path", { class: "fill", d: path, fill: paint(entity) });
      // What covers most of a frame is tinted lightly, or it would drown the picture.
      fill.style.setProperty("--tint", (this.main.has(entity) ? 0.52 - 0.38 * this.shares.get(entity)[index] : 0.16).toFixed(3));
      return [entity, fill];
    });
    const strong = (a, b) => a !== b && (this.main.has(a) || this.main.has(b));
    const between = borderPath(frame.map, width, group, strong);
    const within = borderPath(frame.map, width, group, (a, b, one, other) => one !== other && !strong(a, b));
    const pair = (name) => ["case", "line"].map((kind) => shape("path", { class: `edge ${kind} ${name}` }));
    const kin = pair("kin"), active = pair("active");
    const edges = [["hair", within], ["case", between], ["line", between]].map(([name, d]) => shape("path", { class: `edge ${name}`, d }));
    svg.append(...fills.map(([, fill]) => fill), ...edges, ...kin, ...active);
    const picture = element("div", "pic");
    picture.style.aspectRatio = `${width} / ${height}`;
    if (frame.src) {
      const image = element("img");
      image.alt = `frame ${index + 1} of ${this.frames.length}, ${seconds(frame.t)}: ${fills.map(([entity]) => data.entities[entity].name).join(", ")}`;
      image.src = frame.src;
      picture.append(image);
    }
    picture.append(svg);
    this.listen(picture, frame, index);
    const whole = button("", (event) => pin(this, { frame: index, region: 0 }, event), `whole: ${data.entities[best(frame, 0)].name}`);
    whole.title = "best entity of the whole frame (class token)";
    const node = element("figure", "frame", picture, element("figcaption", "", element("span", "", seconds(frame.t)), whole));
    this.views.push({ node, fills, kin, active, frame });
    return node;
  }

  listen(picture, frame, index) {
    const [height, width] = this.grid;
    const spot = (event) => {
      const box = picture.getBoundingClientRect();
      const x = Math.min(width - 1, Math.max(0, Math.floor(((event.clientX - box.left) / box.width) * width)));
      const y = Math.min(height - 1, Math.max(0, Math.floor(((event.clientY - box.top) / box.height) * height)));
      return { frame: index, region: frame.map[y * width + x] };
    };
    picture.addEventListener("pointermove", (event) => { if (event.pointerType === "mouse") point(this, spot(event), event); });
    picture.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") point(null); });
    picture.addEventListener("click", (event) => pin(this, spot(event), event));
  }

  probabilities() {
    const list = element("ol", "probs");
    this.top.forEach(([label, probability], place) => {
      const first = place === 0, truth = label === this.label;
      const word = first && this.correct !== null ? (this.correct ? "✓ right" : "✗ wrong") : truth ? "✓ true class" : "";
      const kind = truth ? "right" : first && this.correct === false ? "wrong" : "";
      const bar = element("i", kind);
      bar.style.width = `${Math.max(100 * probability, 0.5)}%`;
      const name = element("span", first ? "first" : "", label, word ? element("span", `tag ${kind}`, word) : null);
      list.append(element("li", "", element("div", "name", name, element("span", "", percent(probability))), element("div", "track", bar)));
    });
    return element("section", "", element("h4", "", "Prediction"), list);
  }

  carrierPanel() {
    if (!this.carriers.length) return null;
    const reach = [Math.min(0, ...this.carriers.map((c) => c.effect)), Math.max(0, ...this.carriers.map((c) => c.effect))];
    const span = reach[1] - reach[0] || 1;
    const list = element("div", "carriers");
    const fill = (carriers) => list.replaceChildren(...carriers.map((carrier) => this.carrier(carrier, reach[0], span)));
    fill(this.carriers.filter((carrier) => this.strongest.has(carrier.entity)));
    const panel = element("section", "", element("h4", "", "What carried it ", element("span", "muted", "leave-one-entity-out")), list);
    if (this.carriers.length > this.strongest.size) {
      const more = button("more", () => { fill(this.carriers); more.remove(); this.show(this.marked); }, `all ${this.carriers.length} entities`);
      panel.append(more);
    }
    const untried = this.untried ? ` ${plural(this.untried, "smaller entity").replace("entitys", "entities")} not tried.` : "";
    panel.append(element("p", "hint", `Change of the logit of “${this.predicted}” that the entity’s regions make: with them minus without them.${untried}`));
    return panel;
  }

  carrier(carrier, low, span) {
    const bar = element("i", carrier.effect < 0 ? "against" : "");
    const track = element("div", "effect", bar);
    const at = (value) => `${(100 * (value - low)) / span}%`;
    track.style.setProperty("--zero", at(0));
    track.style.setProperty("--from", at(Math.min(0, carrier.effect)));
    track.style.setProperty("--wide", `${(100 * Math.abs(carrier.effect)) / span}%`);
    const row = element("div", "carrier", this.entityButton(carrier.entity, carrier.regions), track, element("span", "value", signed(carrier.effect)));
    this.rows.push([carrier.entity, row]);
    return row;
  }

  entityButton(entity, regions = null) {
    const target = { entity, regions };
    const node = button("entity", (event) => pin(this, target, event), swatch(entity), element("span", "", data.entities[entity].name));
    node.addEventListener("pointerenter", (event) => { if (event.pointerType === "mouse") point(this, target, event); });
    node.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") point(null); });
    return node;
  }

  strip() {
    const effects = new Map(this.carriers.map((carrier) => [carrier.entity, carrier.effect]));
    const explained = this.carriers.map((carrier) => carrier.entity).filter((entity) => this.shares.has(entity));
    const order = [...explained, ...this.found.filter((entity) => !effects.has(entity))];
    const body = element("tbody");
    const fill = (entities) => body.replaceChildren(...entities.map((entity) => this.stripRow(entity)));
    const kept = new Set([...this.strongest, ...this.found].filter((entity) => this.shares.has(entity)).slice(0, ROWS));
    for (const entity of this.found) if (kept.size < ROWS) kept.add(entity);
    fill(order.filter((entity) => kept.has(entity)));
    const times = this.frames.map((frame) => element("th", "", frame.t.toFixed(frame.t < 100 ? 1 : 0)));
    const table = element("table", "", element("thead", "", element("tr", "", element("th", "", "seconds"), ...times)), body);
    const rule = explained.length ? "share of the frame’s patches, in %; ordered by effect" : "share of the frame’s patches, in %; ordered by share";
    const section = element("section", "strip", element("h4", "", "Entities over time ", element("span", "muted", rule)), table);
    if (order.length > kept.size) {
      const more = button("more", () => { fill(order); more.remove(); this.show(this.marked); }, `all ${order.length} entities`);
      section.append(more);
    }
    return section;
  }

  stripRow(entity) {
    const cells = (this.shares.get(entity) || []).map((share, index) => {
      const strength = Math.sqrt(share);
      const cell = element("td", share === 0 ? "none" : strength > 0.6 ? "deep" : "", share === 0 ? "" : share < 0.01 ? "<1" : String(Math.round(100 * share)));
      cell.style.setProperty("--a", (0.1 + 0.9 * strength).toFixed(3));
      cell.addEventListener("pointerenter", () => this.show({ entity, frame: index, cell }));
      cell.addEventListener("pointerleave", () => this.show(null));
      return cell;
    });
    const row = element("tr", "", element("th", "", this.entityButton(entity)), ...cells);
    this.rows.push([entity, row]);
    return row;
  }

  // target: null, {frame, region}, or {entity, regions, frame}; a filter by entity is what stays when nothing is pointed at.
  show(target) {
    if (!this.built) return;
    this.marked = target;
    const chosen = target || (filters.entity !== null ? { entity: filters.entity } : null);
    const entity = chosen === null ? null : chosen.entity ?? best(this.frames[chosen.frame], chosen.region);
    this.node.classList.toggle("focus", chosen !== null);
    this.views.forEach((view, index) => {
      view.node.classList.toggle("lit", chosen !== null && chosen.entity !== undefined && chosen.frame === index);
      view.fills.forEach(([other, fill]) => fill.classList.toggle("same", other === entity));
      const here = chosen !== null && chosen.frame === index && chosen.region > 0;
      const outline = (wanted) => outlinePath(view.frame.map, this.grid[1], wanted);
      const kin = chosen === null ? "" : outline((region) => best(view.frame, region) === entity);
      const active = here ? outline((region) => region === chosen.region) : "";
      view.kin.forEach((edge) => edge.setAttribute("d", kin));
      view.active.forEach((edge) => edge.setAttribute("d", active));
    });
    this.rows.forEach(([other, row]) => row.classList.toggle("lit", other === entity));
    this.node.querySelectorAll("td.lit").forEach((cell) => cell.classList.remove("lit"));
    if (target && target.cell) target.cell.classList.add("lit");
  }
}

// What is pointed at, and what a click or tap holds on to.

let pinned = null;
let pointed = null;

function point(card, target = null, event = null) {
  if (pinned) return;
  if (pointed && pointed !== card) pointed.show(null);
  pointed = card;
  if (card === null) { $("tip").hidden = true; return; }
  card.show(target);
  showTip(card, target, event);
}

function pin(card, target, event) {
  const same = pinned && pinned.card === card && pinned.target.frame === target.frame && pinned.target.region === target.region && pinned.target.entity === target.entity;
  release();
  if (same) return;
  if (pointed) pointed.show(null);
  pinned = { card, target };
  card.show(target);
  showTip(card, target, event);
  $("tip").classList.add("pinned");
  event.stopPropagation();
}

function release() {
  if (pinned) pinned.card.show(null);
  pinned = null;
  $("tip").classList.remove("pinned");
  $("tip").hidden = true;
}

function showTip(card, target, event) {
  const tip = $("tip");
  tip.replaceChildren(...(target.region === undefined ? entityTip(card, target) : regionTip(card, target)));
  tip.hidden = false;
  placeTip(tip, card, target, event);
}

// Beside the frames where there is room, so that what lights up in the other frames stays in sight.
function placeTip(tip, card, target, event) {
  const byKey = event.type === "click" && event.detail === 0;
  const box = byKey ? event.currentTarget.getBoundingClientRect() : { left: event.clientX, top: event.clientY, bottom: event.clientY };
  const aside = card.node.querySelector("aside").getBoundingClientRect();
  const beside = target.region !== undefined && aside.left > box.left;
  const left = beside ? aside.left - 8 : box.left + 18;
  const top = beside ? box.top - tip.offsetHeight / 2 : box.bottom + 14;
  tip.style.left = `${Math.max(10, Math.min(left, innerWidth - tip.offsetWidth - 10))}px`;
  tip.style.top = `${Math.max(10, Math.min(top, innerHeight - tip.offsetHeight - 10))}px`;
}

function entityHead(entity, score) {
  const { name, source, sense, gloss, labels } = data.entities[entity];
  const shown = labels.slice(0, 3).join(", ") + (labels.length > 3 ? ` and ${labels.length - 3} more` : "");
  const origin = (data.origins[source] || source) + (shown && source !== "body_part" ? `: ${shown}` : "");
  return [
    element("div", "head", swatch(entity), element("span", "", name), score === null ? null : element("span", "score", `cos ${score.toFixed(2)}`)),
    gloss ? element("div", "gloss", gloss) : null,
    element("div", "origin", sense ? element("span", "sense", sense) : "no dictionary sense", ` · ${origin}`),
  ].filter((node) => node !== null);
}

function regionTip(card, { frame: index, region }) {
  const frame = card.frames[index];
  const [entities, scores] = frame.top[region];
  const patches = frame.map.filter((other) => other === region).length;
  const low = Math.min(0, ...scores), high = Math.max(...scores, low + 1e-6);
  const rows = entities.map((entity, place) => {
    const bar = element("i");
    bar.style.width = `${(100 * (scores[place] - low)) / (high - low)}%`;
    return element("tr", "", element("td", "", data.entities[entity].name), element("td", "", element("div", "track", bar)), element("td", "", scores[place].toFixed(2)));
  });
  const what = region === 0 ? "whole frame (class token)" : `region ${region}: ${patches} of ${frame.map.length} patches`;
  return [
    ...entityHead(entities[0], scores[0]),
    element("table", "", element("caption", "", "nearest entities, cosine"), element("tbody", "", ...rows)),
    element("div", "where", `frame ${index + 1} of ${card.frames.length}, ${seconds(frame.t)} · ${what}`),
  ];
}

function entityTip(card, { entity }) {
  const shares = card.shares.get(entity) || [];
  const seen = shares.filter((share) => share > 0).length;
  const carrier = card.carriers.find((other) => other.entity === entity);
  const effect = carrier ? ` · effect ${signed(carrier.effect)}` : "";
  const share = percent(card.total(entity) / card.frames.length);
  return [...entityHead(entity, null), element("div", "where", `in ${seen} of ${card.frames.length} frames, ${share} of all patches${effect}`)];
}

// Filters.

const filters = { text: "", label: "", entity: null, verdict: "" };
const cards = data.cards.map((content, index) => new Card(content, index));
const classOf = (card) => card.label ?? card.predicted;

function passes(card) {
  const verdict = card.correct === null ? "none" : card.correct ? "right" : "wrong";
  return (!filters.text || card.searchable.includes(filters.text))
    && (!filters.label || classOf(card) === filters.label)
    && (filters.entity === null || card.shares.has(filters.entity))
    && (!filters.verdict || verdict === filters.verdict);
}

function refresh() {
  filters.text = $("text").value.trim().toLowerCase();
  filters.label = $("class").value;
  filters.entity = $("entity").value === "" ? null : Number($("entity").value);
  filters.verdict = $("verdict").value;
  release();
  let shown = 0;
  for (const card of cards) {
    card.node.hidden = !passes(card);
    shown += card.node.hidden ? 0 : 1;
    card.show(null);
  }
  $("count").textContent = shown === cards.length ? plural(shown, "video") : `${shown} of ${plural(cards.length, "video")}`;
  $("nothing").hidden = shown > 0;
  document.querySelectorAll(".chip").forEach((chip) => chip.setAttribute("aria-pressed", String(chip.dataset.entity === $("entity").value)));
}

function options(select, every, pairs) {
  for (const [value, text] of [["", every], ...pairs]) {
    const option = element("option", "", text);
    option.value = value;
    select.append(option);
  }
  select.addEventListener("change", refresh);
}

function tally(values) {
  const counts = new Map();
  for (const value of values) counts.set(value, (counts.get(value) || 0) + 1);
  return [...counts].sort(([a], [b]) => (a < b ? -1 : 1));
}

function setUp() {
  const seen = [...new Set(cards.flatMap((card) => card.found))];
  const byName = [...seen].sort((a, b) => (data.entities[a].name < data.entities[b].name ? -1 : 1));
  const byArea = [...seen].sort((a, b) => data.entities[b].patches - data.entities[a].patches || a - b);
  options($("class"), "all", tally(cards.map(classOf)).map(([label, count]) => [label, `${label} (${count})`]));
  options($("entity"), "all", byName.map((entity) => [String(entity), data.entities[entity].name]));
  const words = { right: "✓ right", wrong: "✗ wrong", none: "no label" };
  const verdicts = tally(cards.map((card) => (card.correct === null ? "none" : card.correct ? "right" : "wrong")));
  options($("verdict"), "all", verdicts.map(([name, count]) => [name, `${words[name]} (${count})`]));
  $("entities").querySelector("summary").append(` (${seen.length})`);
  for (const entity of byArea) {
    const chip = button("chip", () => { $("entity").value = $("entity").value === String(entity) ? "" : String(entity); refresh(); }, swatch(entity), data.entities[entity].name);
    chip.dataset.entity = String(entity);
    $("entities").querySelector(".chips").append(chip);
  }
  $("text").addEventListener("input", refresh);
  $("overlay").addEventListener("change", () => $("cards").classList.toggle("no-overlay", !$("overlay").checked));
  $("bar").addEventListener("submit", (event) => event.preventDefault());
  $("reset").addEventListener("click", () => { $("bar").reset(); $("cards").classList.remove("no-overlay"); refresh(); });
  for (const id of ["legend", "entities", "bar"]) $(id).hidden = cards.length === 0;
}

// Keyboard.

function step(direction) {
  const visible = cards.map((card) => card.node).filter((node) => !node.hidden);
  const here = visible.indexOf(document.activeElement && document.activeElement.closest(".card"));
  const next = visible[here < 0 ? (direction > 0 ? 0 : visible.length - 1) : here + direction];
  if (!next) return;
  next.focus({ preventScroll: true });
  next.scrollIntoView({ block: "start" });
}

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") { release(); document.activeElement.blur(); return; }
  if (event.target.closest("input:not([type=checkbox]), select, textarea") || event.ctrlKey || event.metaKey || event.altKey) return;
  const actions = {
    ArrowRight: () => step(1),
    ArrowLeft: () => step(-1),
    "/": () => $("text").focus(),
    o: () => $("overlay").click(),
  };
  if (!actions[event.key]) return;
  event.preventDefault();
  actions[event.key]();
});
document.addEventListener("click", (event) => { if (!$("tip").contains(event.target)) release(); });

defineTextures();
setUp();
$("cards").append(...cards.map((card) => card.node));
refresh();
const near = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    near.unobserve(entry.target);
    cards.find((card) => card.node === entry.target).build();
  }
}, { rootMargin: "1200px" });
cards.forEach((card) => near.observe(card.node));
addEventListener("beforeprint", () => cards.forEach((card) => card.build()));
})();
