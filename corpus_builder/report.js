(() => {
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const ROWS = 100;
const PHRASES = 25;
const MOST_NAMES = 70;
const NAMES_TRIED = 1500;
const EXAMPLES = 6; // phrases of each reason, while nothing is asked for

// Nothing from the data becomes markup: text goes in as text nodes, isolated, so that it can be of any script.
function element(tag, className, ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children.filter((child) => child !== null));
  return node;
}

const word = (text, className = "") => element("bdi", className, text);

function button(className, onClick, ...children) {
  const node = element("button", className, ...children);
  node.type = "button";
  node.addEventListener("click", onClick);
  return node;
}

const number = (value) => value.toLocaleString("en");
const plural = (count, noun, nouns = `${noun}s`) => `${number(count)} ${count === 1 ? noun : nouns}`;
const signed = (value, digits) => value.toFixed(digits).replace("-", "−");
const narrow = matchMedia("(max-width: 720px)");

// Marks: a kind is a colour and a shape. One path serves the canvas and the legend.

const kindOf = (entity) => data.marks[entity.kind][0];
const colourOf = (entity) => data.marks[entity.kind][1];
const OUTLINES = {
  circle: "M1 0A1 1 0 1 1-1 0A1 1 0 1 1 1 0Z",
  square: "M-.88-.88H.88V.88H-.88Z",
  triangle: "M0-1.15L1.08.78H-1.08Z",
  cross: "M-1-.55L-.55-1L0-.45L.55-1L1-.55L.45 0L1 .55L.55 1L0 .45L-.55 1L-1 .55L-.45 0Z",
};
const PATHS = Object.fromEntries(Object.entries(OUTLINES).map(([name, d]) => [name, new Path2D(d)]));

function mark(kind) {
  const [, colour, shape] = data.marks[kind];
  const canvas = element("canvas", "mark");
  canvas.width = canvas.height = 34;
  const pen = canvas.getContext("2d");
  pen.setTransform(13.5, 0, 0, 13.5, 17, 17);
  pen.fillStyle = colour;
  pen.fill(PATHS[shape]);
  return canvas;
}

// What is shown: all entities, the filters, the entities that pass them, the chosen one.

const entities = data.entities;
const place = new Map(entities.map((entity, index) => [entity.id, index]));
const state = { visible: [], passes: new Uint8Array(entities.length), chosen: -1, hovered: -1, page: 0 };
const searchable = entities.map((entity) =>
  [entity.name, entity.key, ...(entity.aliases || []), ...(entity.labels || [])].join("\n").toLowerCase());

function refresh() {
  const words = $("text").value.trim().toLowerCase();
  const kind = $("kind").value, source = $("source").value, sense = $("sense").value;
  const passes = (entity, index) => (!words || searchable[index].includes(words))
    && (!kind || kindOf(entity) === kind)
    && (!source || entity.sources.some((number) => data.sources[number][0] === source))
    && (!sense || (entity.gloss !== undefined) === (sense === "with"));
  state.visible = [];
  entities.forEach((entity, index) => {
    state.passes[index] = passes(entity, index) ? 1 : 0;
    if (state.passes[index]) state.visible.push(index);
  });
  if ($("order").value === "name") {
    state.visible.sort((a, b) => (entities[a].name < entities[b].name ? -1 : entities[a].name > entities[b].name ? 1 : a - b));
  } else if (words) {
    const worth = (index) => (entities[index].name === words ? 0 : entities[index].name.startsWith(words) ? 1 : entities[index].name.includes(words) ? 2 : 3);
    state.visible.sort((a, b) => worth(a) - worth(b) || a - b);
  }
  const all = state.visible.length === entities.length;
  $("count").textContent = all ? plural(entities.length, "entity", "entities") : `${number(state.visible.length)} of ${plural(entities.length, "entity", "entities")}`;
  $("nothing").hidden = state.visible.length > 0;
  for (const node of $("legend").children) node.setAttribute("aria-pressed", String(node.dataset.kind === kind));
  state.page = 0;
  drawList();
  map.redraw();
}

// Pages of a list.

function pager(nav, page, count, rows, onTurn) {
  nav.hidden = count <= rows;
  const last = Math.max(0, Math.ceil(count / rows) - 1);
  const turn = (to, label, name) => {
    const node = button("", () => onTurn(to), label);
    node.setAttribute("aria-label", name);
    node.disabled = to < 0 || to > last;
    return node;
  };
  const range = `${number(page * rows + 1)} – ${number(Math.min(count, (page + 1) * rows))} of ${number(count)}`;
  nav.replaceChildren(turn(page - 1, "‹", "previous page"), element("span", "", range), turn(page + 1, "›", "next page"));
}

function drawList() {
  const start = state.page * ROWS;
  $("list").replaceChildren(...state.visible.slice(start, start + ROWS).map((index) => {
    const entity = entities[index];
    const gloss = entity.gloss || (entity.labels || [])[0] || kindOf(entity);
    const row = button("row", () => choose(index, { from: "list" }), mark(entity.kind), word(entity.name, "name"), element("span", "times", number(entity.count)), word(gloss, "gloss"));
    row.dataset.index = String(index);
    row.setAttribute("aria-current", String(index === state.chosen));
    row.title = `${kindOf(entity)}, ${plural(entity.count, "mention")}`;
    return element("li", "", row);
  }));
  $("list").scrollTop = 0;
  pager($("pager"), state.page, state.visible.length, ROWS, (page) => { state.page = page; drawList(); });
}

function rowOf(index) {
  return $("list").querySelector(`[data-index="${index}"]`);
}

function showRow(index) {
  const at = state.visible.indexOf(index);
  if (at >= 0 && Math.floor(at / ROWS) !== state.page) {
    state.page = Math.floor(at / ROWS);
    drawList();
  }
  $("list").querySelectorAll(".row").forEach((row) => row.setAttribute("aria-current", String(row.dataset.index === String(index))));
  const row = rowOf(index);
  if (!row || narrow.matches) return;
  // not scrollIntoView, which would move the page as well
  const list = $("list").getBoundingClientRect(), box = row.getBoundingClientRect();
  if (box.top < list.top) $("list").scrollTop -= list.top - box.top + 6;
  if (box.bottom > list.bottom) $("list").scrollTop += box.bottom - list.bottom + 6;
}

function choose(index, { from = "", open = true } = {}) {
  state.chosen = index;
  drawDetail(entities[index]);
  $("detail").classList.toggle("open", open);
  $("detail").scrollTop = 0;
  showRow(index);
  map.redraw(from !== "map");
  const { name, key, count } = entities[index];
  $("said").textContent = open ? `${name}, ${kindOf(entities[index])}, ${plural(count, "mention")}` : "";
  if (open) history.replaceState(null, "", `#${encodeURIComponent(key)}`);
}

function step(direction) {
  const here = state.visible.indexOf(state.chosen);
  const next = state.visible[here < 0 ? 0 : here + direction];
  if (next === undefined) return;
  choose(next, { from: "list" });
  const row = rowOf(next);
  if (row) row.focus({ preventScroll: !narrow.matches });
}

function letGo() {
  $("detail").classList.remove("open");
  map.hover(-1);
}

// The chosen entity.

function part(title, aside, content) {
  return element("section", "", element("h4", "", title, aside ? element("span", "muted", ` ${aside}`) : null), content);
}

function drawDetail(entity) {
  const close = button("close", letGo, "✕");
  close.setAttribute("aria-label", "Close");
  const sources = entity.sources.map((index) => data.sources[index][1]).join("; ");
  const what = element("p", "what", kindOf(entity), " · ", word(entity.key, "key"), entity.lexname ? ` · ${entity.lexname}` : "", ` · ${plural(entity.count, "mention")}`);
  const parts = [close, element("h3", "", mark(entity.kind), word(entity.name)), what];
  if (entity.gloss) parts.push(element("p", "gloss", word(entity.gloss)));
  if (entity.near) parts.push(part("Nearest entities", "cosine", neighbours(entity)));
  if (entity.senses) parts.push(part("Senses weighed", entity.senses.some(([, , score]) => score !== undefined && score !== null) ? "points, the chosen first" : "", senses(entity)));
  if (entity.labels) parts.push(part("Labels", entity.more_labels ? `${entity.labels.length} of ${number(entity.labels.length + entity.more_labels)}` : String(entity.labels.length), chips(entity.labels)));
  if (entity.contexts) parts.push(part("Found in", "", element("ul", "quotes", ...entity.contexts.map((text) => element("li", "", word(text))))));
  if (entity.aliases) parts.push(part("Also called", "", chips(entity.aliases)));
  if (entity.merged) parts.push(part("Merged into it", "", merges(entity)));
  parts.push(part("Where it comes from", "", element("p", "", sources)));
  if (entity.text) parts.push(part("Text embedded", "", element("p", "muted", word(entity.text))));
  $("detail").replaceChildren(...parts);
}

const chips = (texts) => element("div", "chips", ...texts.map((text) => word(text, "chip")));

function neighbours(entity) {
  return element("ul", "near", ...entity.near.map(([id, cosine]) => {
    const index = place.get(id);
    const name = index === undefined ? element("span", "plain", word(data.others[id]))
      : button("", () => choose(index), mark(entities[index].kind), word(entities[index].name));
    if (index === undefined) name.title = "not shown on this page";
    const bar = element("i");
    bar.style.width = `${Math.max(0, 100 * cosine)}%`;
    return element("li", "", name, element("span", "track", bar), element("span", "number", signed(cosine, 3)));
  }));
}

function senses(entity) {
  return element("ul", "senses", ...entity.senses.map(([id, gloss, score, chosen]) => {
    const tick = element("span", "tick", chosen ? "✓" : "");
    if (chosen) tick.title = "chosen";
    const points = element("span", "points", score === null ? "–" : signed(score, 2));
    return element("li", chosen ? "chosen" : "", tick, word(id, "id"), points, word(gloss, "says"));
  }));
}

function merges(entity) {
  return element("ul", "quotes", ...entity.merged.map(([name, key, reason, cosine, count]) => {
    const how = cosine === null ? reason : `${reason}, cosine ${signed(cosine, 3)}`;
    return element("li", "", word(name), element("span", "muted", " ", word(key === name ? "" : key), ` ${how}, ${plural(count, "mention")}`));
  }));
}

// The map. Points lie on a layer of their own, drawn anew only when the view or the filters change.

const map = (() => {
  const canvas = $("map"), layer = document.createElement("canvas");
  const view = { zoom: 1, x: 0, y: 0 };
  const size = { width: 0, height: 0, ratio: 1, scale: 1, left: 0, top: 0 };
  const reach = [0, 1].map((axis) => entities.reduce((most, entity) => Math.max(most, entity.at[axis]), 0));
  const base = entities.length > 6000 ? 2.4 : entities.length > 1500 ? 3.2 : entities.length > 500 ? 4.2 : 5;
  const radius = entities.map((entity) => base * Math.min(2.2, 1 + Math.log2(Math.max(1, entity.count)) / 8));
  let held = null, waiting = false;

  const left = (index) => (size.left + entities[index].at[0] * size.scale) * view.zoom + view.x;
  const top = (index) => (size.top + entities[index].at[1] * size.scale) * view.zoom + view.y;
  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function measure() {
    const box = canvas.getBoundingClientRect(), edge = 26;
    Object.assign(size, { width: box.width, height: box.height, ratio: devicePixelRatio || 1 });
    for (const each of [canvas, layer]) {
      each.width = Math.round(size.width * size.ratio);
      each.height = Math.round(size.height * size.ratio);
    }
    size.scale = Math.min((size.width - 2 * edge) / Math.max(1, reach[0]), (size.height - 2 * edge) / Math.max(1, reach[1]));
    size.left = (size.width - reach[0] * size.scale) / 2;
    size.top = (size.height - reach[1] * size.scale) / 2;
  }

  function dot(pen, index, larger = 1) {
    const r = radius[index] * larger * Math.min(1.6, Math.sqrt(view.zoom));
    pen.setTransform(size.ratio * r, 0, 0, size.ratio * r, size.ratio * left(index), size.ratio * top(index));
    pen.fillStyle = colourOf(entities[index]);
    pen.fill(PATHS[data.marks[entities[index].kind][2]]);
  }

  function plain(pen) {
    pen.setTransform(size.ratio, 0, 0, size.ratio, 0, 0);
    pen.font = `12px ${style("--text")}`;
    pen.textBaseline = "middle";
    pen.lineJoin = "round";
  }

  function drawLayer() {
    const pen = layer.getContext("2d");
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.clearRect(0, 0, layer.width, layer.height);
    const away = [], here = [];
    for (let index = entities.length - 1; index >= 0; index--) {
      const x = left(index), y = top(index);
      if (x < -12 || y < -12 || x > size.width + 12 || y > size.height + 12) continue;
      (state.passes[index] ? here : away).push(index);
    }
    pen.globalAlpha = 0.1;
    away.forEach((index) => dot(pen, index));
    pen.globalAlpha = entities.length > 1500 ? 0.7 : 0.85;
    here.forEach((index) => dot(pen, index));
    pen.globalAlpha = 1;
    drawNames(pen, here.reverse());
  }

  // The names of what is mentioned most, as far as they do not run into one another.
  function drawNames(pen, order) {
    plain(pen);
    const taken = [];
    const halo = style("--surface"), ink = style("--ink");
    for (const index of order.slice(0, NAMES_TRIED)) {
      if (taken.length === MOST_NAMES) break;
      const box = nameBox(pen, index);
      if (box.x + box.wide > size.width - 4 || taken.some((other) => meets(box, other))) continue;
      taken.push(box);
      name(pen, index, halo, ink);
    }
  }

  const meets = (one, other) => one.x < other.x + other.wide + 8 && other.x < one.x + one.wide + 8 && Math.abs(one.y - other.y) < 17;
  const short = (text) => (text.length > 28 ? `${text.slice(0, 27)}…` : text);
  const nameBox = (pen, index) => ({ x: left(index) + radius[index] + 4, y: top(index), wide: pen.measureText(short(entities[index].name)).width });

  function name(pen, index, halo, ink, weight = "") {
    pen.font = `${weight} 12px ${style("--text")}`;
    const box = nameBox(pen, index);
    const x = box.x + box.wide > size.width - 4 ? Math.max(4, left(index) - radius[index] - 4 - box.wide) : box.x;
    pen.strokeStyle = halo;
    pen.lineWidth = 3.5;
    pen.strokeText(short(entities[index].name), x, box.y);
    pen.fillStyle = ink;
    pen.fillText(short(entities[index].name), x, box.y);
  }

  function paint() {
    const pen = canvas.getContext("2d");
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.clearRect(0, 0, canvas.width, canvas.height);
    const near = state.chosen < 0 ? [] : (entities[state.chosen].near || []).map(([id]) => place.get(id)).filter((index) => index !== undefined);
    pen.globalAlpha = state.chosen < 0 ? 1 : 0.7;
    pen.drawImage(layer, 0, 0);
    pen.globalAlpha = 1;
    plain(pen);
    const halo = style("--surface"), ink = style("--ink");
    pen.strokeStyle = style("--accent");
    pen.lineWidth = 1.5;
    for (const index of near) {
      pen.beginPath();
      pen.moveTo(left(state.chosen), top(state.chosen));
      pen.lineTo(left(index), top(index));
      pen.stroke();
    }
    near.forEach((index) => dot(pen, index, 1.15));
    plain(pen);
    near.forEach((index) => name(pen, index, halo, ink));
    for (const index of [state.chosen, state.hovered].filter((each) => each >= 0)) {
      dot(pen, index, 1.5);
      plain(pen);
      pen.beginPath();
      pen.arc(left(index), top(index), 1.5 * radius[index] + 5, 0, 2 * Math.PI);
      pen.strokeStyle = ink;
      pen.lineWidth = 2;
      pen.stroke();
      name(pen, index, halo, ink, "650");
    }
  }

  function redraw() {
    if (waiting || !size.width) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; drawLayer(); paint(); });
  }

  function nearest(event, most) {
    const box = canvas.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
    let found = -1, least = most * most;
    for (const index of state.visible) {
      const distance = (left(index) - x) ** 2 + (top(index) - y) ** 2;
      if (distance < least) [found, least] = [index, distance];
    }
    return found;
  }

  function hover(index, event = null) {
    const tip = $("tip");
    tip.hidden = index < 0 || !event;
    if (!tip.hidden) {
      const entity = entities[index];
      tip.replaceChildren(element("b", "", word(entity.name)), element("span", "muted", ` ${kindOf(entity)}`), element("div", "", word(entity.gloss || "")));
      tip.style.left = `${Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 12)}px`;
      tip.style.top = `${Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 12)}px`;
    }
    if (index === state.hovered) return;
    state.hovered = index;
    paint();
  }

  function zoom(factor, x = size.width / 2, y = size.height / 2) {
    const to = Math.min(40, Math.max(1, view.zoom * factor));
    view.x = x - ((x - view.x) * to) / view.zoom;
    view.y = y - ((y - view.y) * to) / view.zoom;
    view.zoom = to;
    keepInside();
  }

  function keepInside() {
    view.x = Math.min(0, Math.max(size.width * (1 - view.zoom), view.x));
    view.y = Math.min(0, Math.max(size.height * (1 - view.zoom), view.y));
    canvas.classList.toggle("near", view.zoom > 1);
    redraw();
  }

  function whole() {
    Object.assign(view, { zoom: 1, x: 0, y: 0 });
    keepInside();
  }

  // The nearest visible entity within a quarter turn of a direction.
  function go(dx, dy) {
    const from = state.chosen >= 0 ? state.chosen : state.visible[0];
    if (from === undefined) return;
    let found = -1, least = Infinity;
    for (const index of state.visible) {
      const along = (left(index) - left(from)) * dx + (top(index) - top(from)) * dy;
      const across = Math.abs((left(index) - left(from)) * dy) + Math.abs((top(index) - top(from)) * dx);
      if (index === from || along <= 0 || across > along || along + 2 * across >= least) continue;
      [found, least] = [index, along + 2 * across];
    }
    if (found >= 0) choose(found);
  }

  function reveal(index) {
    if (view.zoom === 1 || index < 0) return;
    const x = left(index), y = top(index);
    if (x > 20 && y > 20 && x < size.width - 20 && y < size.height - 20) return;
    view.x += size.width / 2 - x;
    view.y += size.height / 2 - y;
    keepInside();
  }

  canvas.addEventListener("pointermove", (event) => {
    if (held) {
      const dx = event.clientX - held.x, dy = event.clientY - held.y;
      if (!held.moved && Math.hypot(dx, dy) < 5) return;
      held.moved = true;
      canvas.classList.add("held");
      view.x = held.left + dx;
      view.y = held.top + dy;
      keepInside();
    } else if (event.pointerType === "mouse") hover(nearest(event, 16), event);
  });
  canvas.addEventListener("pointerdown", (event) => { held = { x: event.clientX, y: event.clientY, left: view.x, top: view.y, moved: false }; });
  const drop = () => { held = null; canvas.classList.remove("held"); };
  addEventListener("pointercancel", drop);
  addEventListener("pointerup", (event) => {
    const still = held && !held.moved && event.target === canvas;
    drop();
    const found = still ? nearest(event, event.pointerType === "mouse" ? 16 : 26) : -1;
    if (found >= 0) choose(found, { from: "map" });
  });
  canvas.addEventListener("pointerleave", () => hover(-1));
  canvas.addEventListener("dblclick", (event) => zoom(2, event.offsetX, event.offsetY));
  canvas.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    zoom(event.deltaY < 0 ? 1.25 : 0.8, event.offsetX, event.offsetY);
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const acts = { "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5), 0: whole };
    if (event.ctrlKey || event.metaKey || event.altKey || !(ways[event.key] || acts[event.key])) return;
    event.preventDefault();
    event.stopPropagation();
    if (ways[event.key]) go(...ways[event.key]);
    else acts[event.key]();
  });
  $("closer").addEventListener("click", () => zoom(1.6));
  $("farther").addEventListener("click", () => zoom(1 / 1.6));
  $("whole").addEventListener("click", whole);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

  return {
    hover,
    redraw(follow = false) { if (follow) reveal(state.chosen); redraw(); },
    start() { new ResizeObserver(() => { measure(); keepInside(); }).observe(canvas); },
  };
})();

// What was dropped.

const dropped = { reason: -1, page: 0 };

function drawDropped() {
  const words = $("dropped-text").value.trim().toLowerCase();
  const some = dropped.reason < 0 && !words;
  const seen = data.dropped.reasons.map(() => 0);
  const rows = data.dropped.rows.filter(([reason, phrase, , , where]) => (some ? seen[reason]++ < EXAMPLES
    : (dropped.reason < 0 || reason === dropped.reason) && (phrase.toLowerCase().includes(words) || where.toLowerCase().includes(words))));
  [...$("reasons").children].forEach((node, reason) => node.setAttribute("aria-pressed", String(reason === dropped.reason)));
  const start = dropped.page * PHRASES;
  $("phrases").replaceChildren(...rows.slice(start, start + PHRASES).map(([reason, phrase, count, , where]) => element("tr", "",
    element("td", "", word(phrase)), element("td", "", data.dropped.reasons[reason][0]), element("td", "number", number(count)), element("td", "", word(where)))));
  pager($("dropped-pager"), dropped.page, rows.length, PHRASES, (page) => { dropped.page = page; drawDropped(); });
}

function setUpDropped() {
  const some = data.dropped.reasons.length > 0;
  $("dropped").hidden = !some;
  $("dropped-none").hidden = some;
  data.dropped.reasons.forEach(([reason, mentions, phrases], index) => {
    const node = button("", () => { dropped.reason = dropped.reason === index ? -1 : index; dropped.page = 0; drawDropped(); }, word(reason), element("span", "times", number(mentions)));
    node.title = `${plural(phrases, "phrase")}, dropped ${plural(mentions, "time")}`;
    $("reasons").append(node);
  });
  $("dropped-text").addEventListener("input", () => { dropped.page = 0; drawDropped(); });
  drawDropped();
}

// Setting up.

function options(select, every, pairs) {
  for (const [value, text] of [["", every], ...pairs]) {
    const option = element("option", "", text);
    option.value = value;
    select.append(option);
  }
}

function setUp() {
  const kinds = data.marks.map(([kind], index) => [kind, entities.filter((entity) => entity.kind === index).length, index]).filter(([, count]) => count);
  const sources = data.sources.map(([source], index) => [source, entities.filter((entity) => entity.sources.includes(index)).length]).filter(([, count]) => count);
  const known = entities.filter((entity) => entity.gloss !== undefined).length;
  options($("kind"), "all", kinds.map(([kind, count]) => [kind, `${kind} (${number(count)})`]));
  options($("source"), "all", sources.map(([source, count]) => [source, `${source.replace("_", " ")} (${number(count)})`]));
  options($("sense"), "all", [["with", `with a sense (${number(known)})`], ["without", `without (${number(entities.length - known)})`]]);
  for (const [kind, count, index] of kinds) {
    const node = button("", () => { $("kind").value = $("kind").value === kind ? "" : kind; refresh(); }, mark(index), kind, element("span", "times", number(count)));
    node.dataset.kind = kind;
    $("legend").append(node);
  }
  for (const id of ["kind", "source", "sense", "order"]) $(id).addEventListener("change", refresh);
  $("text").addEventListener("input", refresh);
  $("bar").addEventListener("submit", (event) => event.preventDefault());
  $("reset").addEventListener("click", () => { $("bar").reset(); refresh(); });
  for (const id of ["bar", "explorer"]) $(id).hidden = false;
}

function chooseFirst() {
  const wanted = location.hash.slice(1);
  const named = wanted ? entities.findIndex((entity) => encodeURIComponent(entity.key) === wanted) : -1;
  if (named >= 0) choose(named);
  else if (entities.length && !narrow.matches) choose(0, { open: false });
}

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") { letGo(); document.activeElement.blur(); return; }
  if (event.target.closest("input, select, textarea, details") || event.ctrlKey || event.metaKey || event.altKey) return;
  const actions = { "/": () => $("text").focus() };
  if (event.target.closest("#list")) Object.assign(actions, { ArrowDown: () => step(1), ArrowUp: () => step(-1) });
  if (!actions[event.key]) return;
  event.preventDefault();
  actions[event.key]();
});
$("text").addEventListener("keydown", (event) => {
  if (!["ArrowDown", "Enter"].includes(event.key) || !state.visible.length) return;
  event.preventDefault();
  choose(state.visible[0], { from: "list" });
  const row = rowOf(state.visible[0]);
  if (row && event.key === "ArrowDown") row.focus();
});

setUp();
map.start();
refresh();
chooseFirst();
setUpDropped();
})();
