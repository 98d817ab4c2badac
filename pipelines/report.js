(() => {
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const namespace = document.getElementById("namespace").namespaceURI;
const $ = (id) => document.getElementById(id);
const ROWS = 8;
const CARRIERS = 6;
const LEADERS = 2;
const NEGLIGIBLE = 0.005;

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
const clock = (time) => `${Math.floor(time / 60)}:${String(Math.floor(time % 60)).padStart(2, "0")}`;
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
    // A model that reads whole frames only does not change when regions go.
    this.byRegions = this.carriers.some((carrier) => carrier.effects.some((effect) => effect !== 0));
    this.told = 0;
    this.strongest = new Set(this.byRegions ? this.leading(0).map((carrier) => carrier.entity) : []);
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
    const known = this.label !== null;
    const verdict = this.correct === null ? element("span", "verdict muted", known ? `predicted: ${this.predicted}${sure}` : `predicted${sure}`)
      : this.correct ? element("span", "verdict right", `✓ right${sure}`)
      : element("span", "verdict wrong", `✗ wrong: ${this.predicted}${sure}`);
    const part = this.id.match(/^(.+)#t=([\d.]+),([\d.]+)$/);
    const name = part ? `${part[1]} · ${clock(Number(part[2]))} – ${clock(Number(part[3]))}` : this.id;
    const file = this.split ? `${name} · ${this.split}` : name;
    return element("header", "", element("h3", "", known ? this.label : this.predicted), verdict, element("span", "file", file));
  }

  build() {
    if (this.built) return;
    this.built = true;
    const frames = element("div", "frames");
    this.frames.forEach((frame, index) => frames.append(this.frame(frame, index)));
    const left = element("div", "left", frames, this.note ? element("p", "hint", this.note) : null, this.strip());
    this.reasons = element("section", "reasons");
    this.body.append(left, element("aside", "", this.probabilities(), this.explained.length ? this.reasons : null));
    this.tell(0);
    this.show(null);
  }

  // The entities with the largest effect on a label, either way.
  leading(place) {
    const size = (carrier) => Math.abs(carrier.effects[place]);
    return [...this.carriers].sort((a, b) => size(b) - size(a)).slice(0, CARRIERS);
  }

  // Say what carried one of the best labels.
  tell(place) {
    if (!this.explained.length) return;
    this.told = place;
    this.rows = this.rows.filter(([, row]) => !this.reasons.contains(row));
    const title = element("h4", "", "What carried ", element("span", "quoted", this.explained[place]));
    this.reasons.replaceChildren(title, ...(this.byRegions ? this.carrierList(place) : [element("p", "hint", "This model reads whole frames: leaving regions out changes nothing.")]), ...this.frameList(place));
    this.body.querySelectorAll(".probs button").forEach((node) => node.setAttribute("aria-pressed", String(node.dataset.label === this.explained[place])));
    this.show(this.marked ?? null);
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
    this.top.forEach(([label, probability], rank) => {
      const first = rank === 0, truth = label === this.label;
      const word = first && this.correct !== null ? (this.correct ? "✓ right" : "✗ wrong") : truth ? "✓ true class" : "";
      const kind = truth ? "right" : first && this.correct === false ? "wrong" : "";
      const bar = element("i", kind);
      bar.style.width = `${Math.max(100 * probability, 0.5)}%`;
      const name = element("span", first ? "first" : "", label, word ? element("span", `tag ${kind}`, word) : null);
      const line = [element("div", "name", name, element("span", "", percent(probability))), element("div", "track", bar)];
      const place = this.explained.indexOf(label);
      list.append(element("li", "", ...(place < 0 ? line : [this.labelButton(label, place, line)])));
    });
    const hint = this.explained.length > 1 ? element("span", "muted", "choose one to see what carried it") : null;
    return element("section", "", element("h4", "", "Prediction ", hint), list);
  }

  labelButton(label, place, line) {
    const carried = this.byRegions ? [...this.carriers].sort((a, b) => b.effects[place] - a.effects[place]).filter((carrier) => carrier.effects[place] > NEGLIGIBLE).slice(0, LEADERS) : [];
    const leaders = carried.map(({ entity }) => element("span", "leader", swatch(entity), element("span", "", data.entities[entity].name)));
    const node = button("label", () => this.tell(place), ...line, leaders.length ? element("div", "leaders", ...leaders) : null);
    node.dataset.label = label;
    return node;
  }

  carrierList(place) {
    const effects = this.carriers.map((carrier) => carrier.effects[place]);
    const low = Math.min(0, ...effects), span = Math.max(0, ...effects) - low || 1;
    const list = element("div", "carriers");
    const byEffect = (a, b) => b.effects[place] - a.effects[place];
    const fill = (carriers) => list.replaceChildren(...carriers.sort(byEffect).map((carrier) => this.carrier(carrier, place, low, span)));
    const leading = this.leading(place);
    fill([...leading]);
    const more = button("more", () => { fill([...this.carriers]); more.remove(); this.show(this.marked); }, `all ${this.carriers.length} entities`);
    const untried = this.untried ? ` ${this.untried === 1 ? "1 smaller entity" : `${this.untried} smaller entities`} not tried.` : "";
    const heads = element("div", "carrier heads", element("span", "", "entity"), element("span"), element("span", "value", "logit"), place === 0 ? element("span", "becomes", "without") : null);
    const without = place === 0 ? ", and what the prediction is without them" : "";
    const hint = element("p", "hint", `What the entity’s regions add to the logit (with them minus without)${without}.${untried}`);
    return [heads, list, ...(this.carriers.length > leading.length ? [more] : []), hint];
  }

  carrier(carrier, place, low, span) {
    const effect = carrier.effects[place];
    const bar = element("i", effect < 0 ? "against" : "");
    const track = element("div", "effect", bar);
    const at = (value) => `${(100 * (value - low)) / span}%`;
    track.style.setProperty("--zero", at(0));
    track.style.setProperty("--from", at(Math.min(0, effect)));
    track.style.setProperty("--wide", `${(100 * Math.abs(effect)) / span}%`);
    const becomes = place === 0 ? this.becomes(carrier.without) : null;
    const row = element("div", "carrier", this.entityButton(carrier.entity, carrier.regions), track, element("span", "value", signed(effect)), becomes);
    this.rows.push([carrier.entity, row]);
    return row;
  }

  // What a prediction is without a part, beside what it was.
  becomes([label, probability, kept]) {
    const was = this.probabilityOf(this.explained[0]);
    return label === this.explained[0]
      ? element("span", "becomes", was === null ? percent(kept) : `→ ${percent(kept)}`)
      : element("span", "becomes flips", `→ ${label} ${percent(probability)}`);
  }

  probabilityOf(label) {
    const found = this.top.find(([name]) => name === label);
    return found ? found[1] : null;
  }

  frameList(place) {
    const effects = this.frameEffects[place] || [];
    if (!effects.length) return [];
    const largest = Math.max(...effects.map(Math.abs), NEGLIGIBLE);
    const bars = effects.map((effect, index) => {
      const bar = element("i", effect < 0 ? "against" : "");
      bar.style.setProperty("--tall", `${(100 * Math.abs(effect)) / largest}%`);
      const target = { moment: index };
      const node = button("moment", (event) => pin(this, target, event), bar);
      node.setAttribute("aria-label", `frame ${index + 1}: effect ${signed(effect)}`);
      this.follow(node, target);
      return node;
    });
    return [element("h4", "", "Frames ", element("span", "muted", "effect of each, left out on its own")), element("div", "moments", ...bars)];
  }

  follow(node, target) {
    node.addEventListener("pointerenter", (event) => { if (event.pointerType === "mouse") point(this, target, event); });
    node.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") point(null); });
  }

  entityButton(entity, regions = null) {
    const target = { entity, regions };
    const node = button("entity", (event) => pin(this, target, event), swatch(entity), element("span", "", data.entities[entity].name));
    this.follow(node, target);
    return node;
  }

  strip() {
    const tried = this.byRegions ? this.carriers.map((carrier) => carrier.entity) : [];
    const explained = tried.filter((entity) => this.shares.has(entity));
    const order = [...explained, ...this.found.filter((entity) => !tried.includes(entity))];
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
    const moment = chosen === null ? undefined : chosen.moment;
    const focus = chosen !== null && moment === undefined;
    const entity = focus ? chosen.entity ?? best(this.frames[chosen.frame], chosen.region) : null;
    this.node.classList.toggle("focus", focus);
    this.views.forEach((view, index) => {
      view.node.classList.toggle("lit", moment === index || (focus && chosen.entity !== undefined && chosen.frame === index));
      view.fills.forEach(([other, fill]) => fill.classList.toggle("same", other === entity));
      const here = focus && chosen.frame === index && chosen.region > 0;
      const outline = (wanted) => outlinePath(view.frame.map, this.grid[1], wanted);
      const kin = !focus ? "" : outline((region) => best(view.frame, region) === entity);
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
  const same = pinned && pinned.card === card && pinned.target.frame === target.frame && pinned.target.region === target.region && pinned.target.entity === target.entity && pinned.target.moment === target.moment;
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
  const tell = target.moment !== undefined ? momentTip : target.region === undefined ? entityTip : regionTip;
  tip.replaceChildren(...tell(card, target));
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
  const share = percent(card.total(entity) / card.frames.length);
  const where = element("div", "where", `in ${seen} of ${card.frames.length} frames, ${share} of all patches`);
  return [...entityHead(entity, null), where, ...(carrier && card.byRegions ? [without(card, carrier.effects, carrier.without)] : [])];
}

function momentTip(card, { moment }) {
  const head = element("div", "head", `frame ${moment + 1} of ${card.frames.length}, ${seconds(card.frames[moment].t)}`);
  return [head, without(card, card.frameEffects.map((effects) => effects[moment]), card.framesWithout[moment])];
}

// The effect of a part on the best labels, and what the prediction is without it.
function without(card, effects, becomes) {
  const rows = card.explained.map((label, place) => element("tr", "", element("td", "", label), element("td", "number", signed(effects[place]))));
  const caption = element("caption", "", `prediction without it: ${becomes[0]} ${percent(becomes[1])}; it adds to the logit of`);
  return element("table", "", caption, element("tbody", "", ...rows));
}

// Filters.

const filters = { text: "", label: "", entity: null, verdict: "", taken: null };
const cards = data.cards.map((content, index) => new Card(content, index));
const classOf = (card) => card.label ?? card.predicted;

function passes(card) {
  const verdict = card.correct === null ? "none" : card.correct ? "right" : "wrong";
  return (!filters.text || card.searchable.includes(filters.text))
    && (!filters.label || classOf(card) === filters.label)
    && (filters.entity === null || card.shares.has(filters.entity))
    && (!filters.verdict || verdict === filters.verdict)
    && (filters.taken === null || card.predicted === filters.taken);
}

function refresh() {
  filters.text = $("text").value.trim().toLowerCase();
  filters.label = $("class").value;
  filters.entity = $("entity").value === "" ? null : Number($("entity").value);
  filters.verdict = $("verdict").value;
  $("taken").hidden = filters.taken === null;
  $("taken").textContent = filters.taken === null ? "" : `${data.confusions ? "taken for" : "predicted:"} “${filters.taken}” ×`;
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
  const judged = cards.some((card) => card.correct !== null);
  $("verdict").closest("label").hidden = !judged;
  document.querySelectorAll(".of-labels").forEach((node) => { node.hidden = !judged; });
  $("entities").querySelector("summary").append(` (${seen.length})`);
  for (const entity of byArea) {
    const chip = button("chip", () => { $("entity").value = $("entity").value === String(entity) ? "" : String(entity); refresh(); }, swatch(entity), data.entities[entity].name);
    chip.dataset.entity = String(entity);
    $("entities").querySelector(".chips").append(chip);
  }
  $("text").addEventListener("input", refresh);
  $("overlay").addEventListener("change", () => $("cards").classList.toggle("no-overlay", !$("overlay").checked));
  $("bar").addEventListener("submit", (event) => event.preventDefault());
  $("taken").addEventListener("click", () => { filters.taken = null; refresh(); });
  $("reset").addEventListener("click", clear);
  for (const id of ["legend", "entities", "bar"]) $(id).hidden = cards.length === 0;
}

function clear() {
  $("bar").reset();
  filters.taken = null;
  $("cards").classList.remove("no-overlay");
  refresh();
}

// Mistakes: a matrix of all videos, and pictures of the most confused pairs.

function choosePair(label, predicted) {
  clear();
  const there = [...$("class").options].some((option) => option.value === label);
  if (there) { $("class").value = label; filters.taken = predicted; } else { $("text").value = label; }
  refresh();
  $("bar").scrollIntoView({ block: "start" });
}

function goTo(card) {
  clear();
  card.build();
  card.node.focus({ preventScroll: true });
  card.node.scrollIntoView({ block: "start" });
}

const CELL = 19, SIDE = 172, HEAD = 138, LETTERS = 25;
const shorten = (text) => (text.length > LETTERS ? `${text.slice(0, LETTERS - 1)}…` : text);

function svgText(content, attributes) {
  const node = shape("text", attributes);
  node.append(content);
  return node;
}

function drawMatrix({ classes, counts, left_out: leftOut, videos_left_out: videosLeftOut }) {
  const size = CELL * classes.length, width = SIDE + size + HEAD / 2, height = HEAD + size;
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": "confusion matrix: true class by row, prediction by column" });
  const totals = classes.map((_, row) => counts.filter(([at]) => at === row).reduce((sum, [, , count]) => sum + count, 0));
  svg.append(shape("rect", { class: "sunk", x: SIDE, y: HEAD, width: size, height: size }));
  const marks = [shape("rect", { class: "mark", x: SIDE, height: CELL, width: size }), shape("rect", { class: "mark", y: HEAD, width: CELL, height: size })];
  svg.append(...marks);
  classes.forEach((name, at) => {
    const middle = (at + 0.5) * CELL;
    const full = shape("title", {});
    full.append(name);
    const row = svgText(shorten(name), { x: SIDE - 8, y: HEAD + middle + 4, "text-anchor": "end" });
    row.append(full);
    svg.append(row, svgText(shorten(name), { transform: `translate(${SIDE + middle + 4} ${HEAD - 8}) rotate(-55)` }));
  });
  for (const [row, column, count] of counts) {
    const x = SIDE + column * CELL, y = HEAD + row * CELL, share = count / totals[row];
    const box = shape("rect", { class: row === column ? "hit" : "miss", x: x + 1, y: y + 1, width: CELL - 2, height: CELL - 2, rx: 3, "fill-opacity": (0.25 + 0.75 * share).toFixed(3) });
    const text = svgText(String(count), { class: share > 0.45 ? "deep" : "", x: x + CELL / 2, y: y + CELL / 2 + 3.5, "text-anchor": "middle" });
    const group = shape("g", { class: "cell", "data-row": row, "data-column": column });
    group.append(box, text);
    const words = row === column ? "right" : `taken for “${classes[column]}”`;
    group.addEventListener("pointerenter", (event) => {
      marks[0].setAttribute("y", y);
      marks[1].setAttribute("x", x);
      svg.classList.add("marked");
      if (!pinned) tipAt(event, element("div", "head", classes[row]), element("div", "gloss", `${count} of ${totals[row]} ${words}`));
    });
    group.addEventListener("pointerleave", () => { svg.classList.remove("marked"); if (!pinned) $("tip").hidden = true; });
    group.addEventListener("click", () => choosePair(classes[row], classes[column]));
    svg.append(group);
  }
  const note = leftOut ? `The ${leftOut} classes least confused, and ${plural(videosLeftOut, "video")} of or taken for them, are left out.` : "";
  $("matrix").append(element("div", "scroll", svg), element("p", "hint", `Row: true class. Column: prediction. Choose a cell to see its videos among those below. ${note}`));
}

function tipAt(event, ...content) {
  const tip = $("tip");
  tip.replaceChildren(...content);
  tip.hidden = false;
  tip.style.left = `${Math.max(10, Math.min(event.clientX + 16, innerWidth - tip.offsetWidth - 10))}px`;
  tip.style.top = `${Math.max(10, Math.min(event.clientY + 16, innerHeight - tip.offsetHeight - 10))}px`;
}

function drawPair({ label, predicted, count, shown }) {
  const named = element("span", "pair", element("b", "", label), element("span", "wrong", "✗ taken for"), element("b", "", predicted));
  const head = button("", () => choosePair(label, predicted), named, element("span", "muted", plural(count, "video")));
  const pictures = shown.map(({ id, p, truth, src }) => {
    const card = cards.find((other) => other.id === id);
    const picture = src ? element("img") : element("span", "blank", "no picture");
    if (src) { picture.src = src; picture.alt = `${id}: ${label}, taken for ${predicted}`; }
    const words = element("span", "caption", `said ${percent(p)}`, truth === null ? null : element("br"), truth === null ? null : `true ${percent(truth)}`);
    const node = card ? button("shot", () => goTo(card), picture, words) : element("span", "shot", picture, words);
    node.title = card ? `${id}: go to this video` : id;
    return node;
  });
  return element("figure", "confused", element("figcaption", "", head), element("div", "shots", ...pictures));
}

function drawMistakes() {
  $("mistakes").hidden = !data.confusions;
  if (!data.confusions) return;
  drawMatrix(data.confusions);
  $("pairs").append(...data.pairs.map(drawPair));
  if (!data.pairs.length) $("pairs").append(element("p", "muted", "No video was taken for another class."));
}

// Timelines of long videos.

function drawTimeline() {
  const lanes = data.timeline || [];
  $("timeline").hidden = !lanes.length;
  const labels = tally(lanes.flatMap(({ actions }) => actions.map(([, , label]) => label))).sort((a, b) => b[1] - a[1]).map(([label]) => label);
  for (const { video, actions } of lanes) {
    const first = actions[0][0], span = actions[actions.length - 1][1] - first || 1;
    const bars = actions.map(([start, end, label, probability, windows]) => {
      const tone = data.palette[labels.indexOf(label) % data.palette.length];
      const words = `${clock(start)} – ${clock(end)}: ${label}, ${percent(probability)}, ${plural(windows, "window")}`;
      const node = button("stretch", () => { clear(); $("text").value = video; filters.taken = label; refresh(); $("bar").scrollIntoView({ block: "start" }); }, element("span", "", label));
      node.style.setProperty("--c", tone);
      node.style.left = `${(100 * (start - first)) / span}%`;
      node.style.width = `${(100 * (end - start)) / span}%`;
      node.setAttribute("aria-label", words);
      node.addEventListener("pointerenter", (event) => { if (!pinned) tipAt(event, element("div", "head", label), element("div", "gloss", `${clock(start)} – ${clock(end)} · ${percent(probability)} · ${plural(windows, "window")}`)); });
      node.addEventListener("pointerleave", () => { if (!pinned) $("tip").hidden = true; });
      return node;
    });
    const ends = element("div", "ends", element("span", "", clock(first)), element("span", "", clock(first + span / 2)), element("span", "", clock(first + span)));
    $("lanes").append(element("div", "lane", element("h3", "", video), element("div", "stretches", ...bars), ends));
  }
  $("lanes").append(element("p", "key-labels", ...labels.slice(0, data.palette.length).map((label) => {
    const mark = element("i", "swatch");
    mark.style.setProperty("--c", data.palette[labels.indexOf(label) % data.palette.length]);
    return element("span", "", mark, label);
  })));
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
drawMistakes();
drawTimeline();
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
