"use strict";
// Texts are set by textContent only, so nothing that a model wrote can become markup.
const data = JSON.parse(document.getElementById("data").textContent);
const PER_PAGE = 48;
const two = data.runs.length === 2;
const sides = ["run-a", "run-b"];

function make(tag, name, text) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  if (text !== undefined) element.textContent = text;
  return element;
}

function find(selector) {
  return document.querySelector(selector);
}

const words = (name) => name.replaceAll("_", " ");
const number = (value) => (Math.abs(value) >= 100 ? value.toFixed(1) : value.toFixed(3));
const signed = (value) => (value > 0 ? "+" : value < 0 ? "\u2212" : "\u00b1") + number(Math.abs(value));
const chance = (p) => (p < 0.001 ? "p < 0.001" : `p = ${p.toFixed(3)}`);
const count = (value) => value.toLocaleString("en");
const betterSign = (metric) => (data.lowerIsBetter.includes(data.metrics[metric]) ? -1 : 1);

function dotted(run) {
  const label = make("span", sides[run]);
  if (two) label.append(make("span", "dot"));
  label.append(data.runs[run].name);
  return label;
}

function about() {
  const parts = [`${count(data.rows.length)} rows`];
  for (const run of data.runs)
    if (run.failed) parts.push(`${two ? run.name + ": " : ""}${count(run.failed)} without a prediction (they count as wrong)`);
  find("#about").textContent = parts.join(" \u00b7 ");
  document.body.classList.toggle("two", two);
}

function scores() {
  for (const metric of data.metrics) {
    const tile = make("div", "tile");
    tile.append(make("h3", "", words(metric) + (data.lowerIsBetter.includes(metric) ? " (lower is better)" : "")));
    const ends = data.runs.flatMap((run) => run.scores[metric].interval);
    const low = Math.min(0, ...ends), high = Math.max(1, ...ends);
    const place = (value) => `${(100 * (value - low)) / (high - low)}%`;
    data.runs.forEach((run, side) => {
      const score = run.scores[metric];
      const block = make("div", "side " + sides[side]);
      if (two) block.append(dotted(side));
      block.append(make("span", "value", number(score.value)), make("span", "interval", `95 %: ${number(score.interval[0])} to ${number(score.interval[1])}`));
      const track = make("div", "track"), range = make("i"), mark = make("b");
      range.style.left = place(score.interval[0]);
      range.style.right = `calc(100% - ${place(score.interval[1])})`;
      mark.style.left = place(score.value);
      track.append(range, mark);
      block.append(track);
      tile.append(block);
    });
    const comparison = data.comparisons[metric];
    if (comparison) {
      const [from, to] = comparison.interval.map(signed);
      const line = make("div", "difference");
      line.append(make("div", "", `by row ${signed(comparison.difference)}, 95 %: ${from} to ${to}, ${chance(comparison.p_value)}`));
      line.append(make("div", "soft", `higher in ${count(comparison.better)} rows, equal in ${count(comparison.equal)}, lower in ${count(comparison.worse)}`));
      tile.append(line);
    }
    tile.append(make("div", "signature", data.runs[0].scores[metric].signature));
    find("#scores .tiles").append(tile);
  }
}

function types() {
  const kinds = Object.keys(data.types);
  if (!kinds.length) return;
  find("#types").hidden = false;
  const show = (kind) => {
    for (const button of find("#types .choices").children) button.setAttribute("aria-pressed", button.dataset.kind === kind);
    const head = make("tr");
    head.append(make("th", "", words(kind)), make("th", "", "rows"));
    for (const metric of data.metrics)
      data.runs.forEach((run, side) => {
        const cell = make("th", "", words(metric) + (two ? " " : ""));
        if (two) cell.append(dotted(side));
        head.append(cell);
      });
    const body = make("tbody");
    for (const entry of data.types[kind]) {
      const line = make("tr");
      line.append(make("td", "", entry.label), make("td", "", count(entry.n)));
      for (const metric of data.metrics)
        for (const run of entry.runs) {
          const { value, interval } = run[metric];
          const cell = make("td", "", number(value) + " ");
          cell.append(make("small", "", `${number(interval[0])} to ${number(interval[1])}`));
          line.append(cell);
        }
      body.append(line);
    }
    const top = make("thead");
    top.append(head);
    find("#types table").replaceChildren(top, body);
  };
  for (const kind of kinds) {
    const button = make("button", "", words(kind));
    button.type = "button";
    button.dataset.kind = kind;
    button.addEventListener("click", () => show(kind));
    find("#types .choices").append(button);
  }
  show(kinds[0]);
}

function distributions() {
  data.metrics.forEach((metric, index) => {
    let low = 0, high = 1;
    for (const row of data.rows)
      for (const said of row.said) {
        low = Math.min(low, said.values[index]);
        high = Math.max(high, said.values[index]);
      }
    const bins = 20;
    const counts = data.runs.map(() => new Array(bins).fill(0));
    for (const row of data.rows)
      row.said.forEach((said, side) => {
        counts[side][Math.min(bins - 1, Math.floor(((said.values[index] - low) / (high - low)) * bins))] += 1;
      });
    const most = Math.max(...counts.flat());
    const tile = make("div", "tile"), bars = make("div", "bars"), ends = make("div", "ends numbers");
    for (let bin = 0; bin < bins; bin++) {
      const group = make("span");
      const edges = [bin, bin + 1].map((edge) => number(low + ((high - low) * edge) / bins));
      group.title = `${edges[0]} to ${edges[1]}: ` + counts.map((each) => count(each[bin])).join(" and ") + " rows";
      counts.forEach((each, side) => {
        const bar = make("i", sides[side]);
        bar.style.height = each[bin] ? `max(2px, ${(100 * each[bin]) / most}%)` : "0";
        group.append(bar);
      });
      bars.append(group);
    }
    ends.append(make("span", "", number(low)), make("span", "", `highest bar: ${count(most)} rows`), make("span", "", number(high)));
    tile.append(make("h3", "", words(metric)), bars, ends);
    find("#distributions .tiles").append(tile);
  });
}

const form = find(".controls");
let page = 0;

function option(select, value, text, group) {
  const element = make("option", "", text);
  element.value = value;
  (group || select).append(element);
}

function controls() {
  const { sort, order, show } = form.elements;
  data.metrics.forEach((metric, index) => {
    if (two) data.runs.forEach((run, side) => option(sort, `${index} ${side}`, `${words(metric)}, ${run.name}`));
    else option(sort, `${index} 0`, words(metric));
  });
  if (two) data.metrics.forEach((metric, index) => option(sort, `${index} change`, `change of ${words(metric)}`));
  option(sort, "given", "order of the file");
  option(order, "worst", "worst first");
  option(order, "best", "best first");
  option(show, "", "all rows");
  if (data.runs.some((run) => run.failed)) option(show, "failed", "without a prediction");
  if (two) {
    option(show, "texts", "different texts");
    option(show, "better", `${data.runs[0].name} better`);
    option(show, "worse", `${data.runs[1].name} better`);
  }
  for (const [kind, entries] of Object.entries(data.types)) {
    const group = make("optgroup");
    group.label = words(kind);
    show.append(group);
    for (const entry of entries) option(show, "type " + JSON.stringify([kind, entry.label]), `${entry.label} (${count(entry.n)})`, group);
  }
  form.addEventListener("input", () => { page = 0; gallery(); });
  form.addEventListener("submit", (event) => event.preventDefault());
  find("#previous").addEventListener("click", () => turn(-1));
  find("#next").addEventListener("click", () => turn(1));
}

function turn(by) {
  page += by;
  gallery();
  find("#gallery").scrollIntoView();
}

// How much better the first run is in the metric by which rows are sorted.
function change(row, metric) {
  return betterSign(metric) * (row.said[0].values[metric] - row.said[1].values[metric]);
}

function chosen() {
  const text = form.elements.text.value.trim().toLowerCase();
  const [first, second] = form.elements.sort.value.split(" ");
  const metric = first === "given" ? 0 : Number(first);
  form.elements.order.disabled = first === "given";
  const show = form.elements.show.value;
  const type = show.startsWith("type ") ? JSON.parse(show.slice(5)) : null;
  const rows = data.rows.filter((row) => {
    if (type && row.types[type[0]] !== type[1]) return false;
    if (show === "failed" && !row.said.some((said) => "failed" in said)) return false;
    if (show === "texts" && row.said[0].text === row.said[1].text) return false;
    if (show === "better" && change(row, metric) <= 0) return false;
    if (show === "worse" && change(row, metric) >= 0) return false;
    if (!text) return true;
    const all = [row.id, row.question || "", ...row.references, ...row.said.map((said) => said.text)];
    return all.some((each) => each.toLowerCase().includes(text));
  });
  if (first === "given") return rows;
  const goodness = (row) => (second === "change" ? change(row, metric) : betterSign(metric) * row.said[Number(second)].values[metric]);
  const sign = form.elements.order.value === "worst" ? 1 : -1;
  return rows.sort((a, b) => sign * (goodness(a) - goodness(b)));
}

function picture(row) {
  if (row.picture === undefined && row.file === undefined) return make("div", "none", "no picture");
  const image = make("img");
  image.alt = "";
  image.loading = "lazy";
  image.src = row.picture === undefined ? row.file : data.pictures[row.picture];
  image.addEventListener("error", () => image.replaceWith(make("div", "none", "picture not found")));
  return image;
}

function answer(row, side) {
  const said = row.said[side];
  const block = make("div", "answer " + sides[side]);
  if (two) block.append(dotted(side));
  if ("failed" in said) block.append(make("p", "failed", said.failed === "empty" ? "empty prediction" : `failed: ${said.failed}`));
  else block.append(make("p", "clip", said.text));
  const values = make("p", "numbers");
  data.metrics.forEach((metric, index) => {
    if (index) values.append(" \u00b7 ");
    const value = said.values[index];
    let name = "";
    if (two) {
      const gain = change(row, index) * (side ? -1 : 1);
      name = gain > 0 ? "good" : gain < 0 ? "bad" : "";
    }
    values.append(`${words(metric)} `, make("b", name, number(value)));
  });
  block.append(values);
  return block;
}

function card(row) {
  const element = make("article", "card"), body = make("div", "body"), answers = make("div", "answers");
  element.append(picture(row), body);
  if (row.question !== undefined) body.append(make("p", "question", row.question));
  data.runs.forEach((run, side) => answers.append(answer(row, side)));
  body.append(answers);
  const times = new Map();
  for (const text of row.references) times.set(text, (times.get(text) || 0) + 1);
  const given = [...times].map(([text, n]) => (n > 1 ? `${text} (${n}\u00d7)` : text));
  if (given.length) body.append(make("p", "references clip", "expected: " + given.join(" / ")));
  for (const label of Object.values(row.types)) body.append(make("span", "chip", label));
  body.append(make("p", "identity", row.id));
  return element;
}

function gallery() {
  const rows = chosen();
  const pages = Math.max(1, Math.ceil(rows.length / PER_PAGE));
  page = Math.min(Math.max(0, page), pages - 1);
  find("#count").textContent = rows.length === data.rows.length ? `${count(rows.length)} rows` : `${count(rows.length)} of ${count(data.rows.length)} rows`;
  find(".cards").replaceChildren(...rows.slice(page * PER_PAGE, (page + 1) * PER_PAGE).map(card));
  find("#page").textContent = `${page + 1} of ${pages}`;
  find("#previous").disabled = page === 0;
  find("#next").disabled = page === pages - 1;
  find(".pages").hidden = pages === 1;
}

for (const id of ["#scores", "#distributions"]) find(id).hidden = data.metrics.length === 0; // texts without references
about();
scores();
types();
distributions();
controls();
gallery();
