// Pictures that grow when they are chosen, and folds that open when a link leads into them.
(() => {
  const dialog = document.createElement("dialog");
  document.body.append(dialog);
  dialog.addEventListener("click", () => dialog.close());
  document.addEventListener("click", (event) => {
    const button = event.target.closest(".enlarge");
    if (!button) return;
    const picture = (button.querySelector(".marked") || button.querySelector("img")).cloneNode(true);
    const close = document.createElement("button");
    close.type = "button";
    close.textContent = "Close";
    dialog.replaceChildren(picture, close);
    dialog.setAttribute("aria-label", button.querySelector("img").alt);
    dialog.showModal();
  });
  const reveal = () => {
    const target = document.getElementById(location.hash.slice(1));
    if (target && target.matches("details")) target.open = true;
  };
  window.addEventListener("hashchange", reveal);
  window.addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((fold) => { fold.open = true; }));
  reveal();
})();

// The gallery: sorts, searches and turns the pages of the rows in the element "rows". Texts enter as text nodes alone.
(() => {
  const app = document.getElementById("gallery-app");
  if (!app) return;
  const data = JSON.parse(document.getElementById("rows").textContent);
  const PAGE = 12;
  const LONG = 240;
  const MANY_ARMS = 4;
  const LABELS = { fixed: "Fixed", broken: "Broken", both_wrong: "Wrong in both", both_right: "Right in both", wrong: "Wrong",
    right: "Right", unpaired: "Unpaired" };
  // Positions in data.arms; first is null where one arm is looked at alone.
  const state = { first: data.first, second: data.second, tab: null, query: "", page: 0 };
  const haystacks = new Map();

  const isRight = (answer) => answer[1] >= data.right_score;

  function outcome(index) {
    const second = data.rows[index].answers[state.second];
    const first = state.first === null ? second : data.rows[index].answers[state.first];
    if (!first || !second) return "unpaired";
    if (state.first === null) return isRight(second) ? "right" : "wrong";
    if (isRight(first) === isRight(second)) return isRight(second) ? "both_right" : "both_wrong";
    return isRight(second) ? "fixed" : "broken";
  }

  function label(key) {
    const isTuning = state.first !== null && data.arms[state.first] === "untuned" && data.arms[state.second] === "tuned";
    return LABELS[key] + (isTuning && (key === "fixed" || key === "broken") ? " by tuning" : "");
  }

  function haystack(index) {
    if (!haystacks.has(index)) {
      const row = data.rows[index];
      const texts = [row.id, row.question, ...row.references, ...row.tags, ...row.answers.map((answer) => answer ? answer[0] : "")];
      haystacks.set(index, texts.join("\n").toLocaleLowerCase());
    }
    return haystacks.get(index);
  }

  function found() {
    const words = state.query.toLocaleLowerCase().split(/\s+/).filter(Boolean);
    return data.rows.map((_, index) => index).filter((index) => words.every((word) => haystack(index).includes(word)));
  }

  // Text with the searched words marked.
  function marked(text) {
    const words = state.query.split(/\s+/).filter(Boolean).map((word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
    if (!words.length) return [text];
    return text.split(new RegExp("(" + words.join("|") + ")", "giu")).map((part, i) => (i % 2 ? make("mark", {}, part) : part));
  }

  function textPiece(text) {
    const node = make("span", { class: "text-piece", dir: "auto" });
    if (text === "") node.append(make("span", { class: "small" }, "(empty)"));
    else if (text.length <= LONG) node.append(...marked(text));
    else {
      const start = Array.from(text.slice(0, LONG - 60)).slice(0, -1).join("");
      const more = make("button", { type: "button", class: "link", click: () => node.replaceChildren(...marked(text)) },
        "show all " + text.length.toLocaleString("en") + " characters");
      node.append(...marked(start), "\u2026 ", more);
    }
    return node;
  }

  function answerLine(arm, answer) {
    const [text, score, parsed = text] = answer;
    const right = isRight(answer);
    const binary = score === 0 || score === 1;
    const sign = make("span", { class: "sign", "aria-hidden": "true" }, right ? "\u2713" : "\u2717");
    const spoken = make("span", { class: "unseen" }, right ? "right: " : "wrong: ");
    const value = make("dd", { class: right ? "is-right" : "is-wrong" }, sign, spoken, textPiece(text));
    const notes = [];
    if (parsed === null) notes.push("no answer found in it");
    else if (parsed.trim() !== text.trim()) notes.push("read as \u201c" + parsed + "\u201d");
    if (!binary) notes.push("score " + (score === null ? "\u2013" : score.toFixed(3)));
    if (notes.length) value.append(" ", make("span", { class: "small" }, "(" + notes.join(", ") + ")"));
    return [make("dt", {}, data.arms[arm]), value];
  }

  // What the arms that are not being compared said, written when it is opened.
  function more(arms, row) {
    const wrong = arms.filter((arm) => !isRight(row.answers[arm])).length;
    const fold = make("details", {}, make("summary", {}, arms.length + (arms.length === 1 ? " other arm, " : " other arms, ") + wrong + " of them wrong"));
    fold.addEventListener("toggle", () => {
      if (fold.children.length === 1) fold.append(make("dl", {}, ...arms.flatMap((arm) => answerLine(arm, row.answers[arm]))));
    });
    return fold;
  }

  // The fields of a row whose answers are JSON: a line each, a column for the reference and for each arm.
  function fieldTable(fields, arms) {
    const nothing = () => make("span", { class: "small" }, "\u2013");
    const cell = (line, arm) => {
      const found = line[2 + arm];
      if (!found) return make("td", { class: "text" }, nothing());
      const [text, similarity] = found;
      const isFull = similarity === 1;
      const said = text === null ? "missing" : line[1] === null ? "invented" : isFull ? "right" : similarity > 0 ? "partly right" : "wrong";
      const sign = make("span", { class: "sign", "aria-hidden": "true" }, isFull ? "\u2713" : "\u2717");
      const node = make("td", { class: "text " + (isFull ? "is-right" : "is-wrong") }, sign, text === null ? "" : textPiece(text));
      node.append(make("span", { class: said === "right" || said === "wrong" ? "unseen" : "small" },
        (text === null ? "" : " ") + said));
      return node;
    };
    const heads = ["Field", "Reference", ...arms.map((arm) => data.arms[arm])];
    const lines = fields.map((line) => make("tr", {}, make("th", { scope: "row" }, line[0]),
      make("td", { class: "text" }, line[1] === null ? nothing() : textPiece(line[1])), ...arms.map((arm) => cell(line, arm))));
    return make("div", { class: "scroller" }, make("table", { class: "fields" },
      make("thead", {}, make("tr", {}, ...heads.map((head) => make("th", { scope: "col", class: "text" }, head)))),
      make("tbody", {}, ...lines)));
  }

  // Boxes and points of the reference, and of the arms that are compared.
  function withMarks(picture, row) {
    if (!row.marks) return picture;
    const layers = [["reference", "reference", row.marks.reference]];
    if (state.first !== null) layers.push(["first", data.arms[state.first], row.marks.answers[state.first] || []]);
    layers.push(["second", data.arms[state.second], row.marks.answers[state.second] || []]);
    return withLayers(picture, row.marks.size, layers);
  }

  function markKeys() {
    if (!data.rows.some((row) => row.marks)) return [];
    const key = (layer, text) => make("span", { class: "mark-key key-" + layer }, text);
    return [" Drawn: ", key("reference", "reference"), ...(state.first === null ? [] : [" ", key("first", data.arms[state.first])]),
      " ", key("second", data.arms[state.second])];
  }

  function card(index) {
    const row = data.rows[index];
    const list = make("dl", {});
    const references = row.references.flatMap((reference, i) => (i ? [" \u00b7 ", textPiece(reference)] : [textPiece(reference)]));
    list.append(make("dt", {}, row.references.length > 1 ? "references" : "reference"), make("dd", {}, ...references));
    const arms = data.arms.map((_, arm) => arm).filter((arm) => row.answers[arm]);
    const both = arms.filter((arm) => arm === state.first || arm === state.second);
    // Of fields there is room for the two that are compared, the one that is looked at beside the reference.
    const chosen = row.fields ? both.sort((arm) => (arm === state.second ? -1 : 1)) : arms.length > MANY_ARMS ? both : arms;
    for (const arm of chosen) list.append(...answerLine(arm, row.answers[arm]));
    const what = label(outcome(index));
    const texts = row.fields ? make("details", {}, make("summary", {}, "The answers as texts"), list) : list;
    const words = make("div", { class: "words" }, make("p", { class: "question" }, textPiece(row.question)),
      ...(row.fields ? [fieldTable(row.fields, chosen)] : []), texts);
    const others = arms.filter((arm) => !chosen.includes(arm));
    if (others.length) words.append(more(others, row));
    words.append(make("p", { class: "foot small" }, make("span", {}, what), make("span", {}, ...marked(row.id)),
      ...row.tags.map((tag) => make("span", {}, ...marked(tag)))));
    const node = make("article", { class: "row", tabindex: "-1", "aria-label": what + ", row " + row.id });
    const pictures = (data.pictures[index] || []).map((address, i, all) => {
      const name = "picture " + (i + 1) + " of row " + row.id;
      const picture = make("img", { src: address, alt: name, loading: "lazy" });
      return make("button", { type: "button", class: "enlarge", "aria-label": "Enlarge " + name },
        i === all.length - 1 ? withMarks(picture, row) : picture);
    });
    if (pictures.length) node.append(make("div", { class: "pictures" }, ...pictures));
    node.append(words);
    return node;
  }

  // The parts that stay while rows change.
  const tabs = make("div", { role: "tablist", "aria-label": "Which rows" });
  const rows = make("div", { class: "rows" });
  const panel = make("div", { role: "tabpanel", id: "gallery-panel", "aria-label": "Rows" }, rows);
  const status = make("span", { role: "status" });
  const explained = make("p", { class: "note" });
  const search = make("input", { type: "search", id: "gallery-search", autocomplete: "off", spellcheck: "false",
    placeholder: "Search questions, answers, groups, ids" });
  const previous = make("button", { type: "button" }, "\u2190 Previous");
  const next = make("button", { type: "button" }, "Next \u2192");

  function keys(outcomes) {
    const known = state.first === null ? ["wrong", "right"] : ["fixed", "broken", "both_wrong", "both_right"];
    return [...known, ...(outcomes.includes("unpaired") ? ["unpaired"] : []), ""];
  }

  function drawTabs(matches) {
    const outcomes = data.rows.map((_, index) => outcome(index));
    const shown = keys(outcomes);
    const counts = { "": matches.length };
    for (const index of matches) counts[outcomes[index]] = (counts[outcomes[index]] || 0) + 1;
    if (!shown.includes(state.tab)) state.tab = shown.find((key) => counts[key]) || ""; // at first one that has rows
    tabs.replaceChildren(...shown.map((key) => {
      const number = make("span", { class: "count" }, (counts[key] || 0).toLocaleString("en"));
      const chosen = key === state.tab;
      return make("button", { type: "button", role: "tab", "data-key": key, "aria-selected": String(chosen),
        tabindex: chosen ? "0" : "-1", "aria-controls": "gallery-panel", click: () => choose(key) },
        key === "" ? "All" : label(key), number);
    }));
  }

  function draw() {
    const matches = found();
    drawTabs(matches);
    const listed = matches.filter((index) => state.tab === "" || outcome(index) === state.tab);
    const pages = Math.max(1, Math.ceil(listed.length / PAGE));
    state.page = Math.min(Math.max(state.page, 0), pages - 1);
    const start = state.page * PAGE;
    const shown = listed.slice(start, start + PAGE);
    rows.replaceChildren(...shown.map(card));
    if (!shown.length) rows.append(make("p", { class: "empty" }, state.query ? "No row holds these words." : "No row is in this class."));
    else rows.firstChild.tabIndex = 0;
    status.textContent = shown.length
      ? (start + 1) + "\u2013" + (start + shown.length) + " of " + listed.length.toLocaleString("en") : "0 rows";
    previous.disabled = state.page === 0;
    next.disabled = state.page >= pages - 1;
    const first = data.arms[state.first];
    const second = data.arms[state.second];
    const graded = data.graded ? " An answer is called right from score " + data.right_score + " on." : "";
    explained.textContent = (state.first === null ? "Answers of " + second + "."
      : "Fixed: wrong in " + first + ", right in " + second + ". Broken: right in " + first + ", wrong in " + second + ".") + graded;
    explained.append(...markKeys());
  }

  function choose(key) {
    const inTabs = tabs.contains(document.activeElement);
    state.tab = key;
    state.page = 0;
    draw();
    if (inTabs) tabs.querySelector('[aria-selected="true"]').focus();
  }

  function turn(by, last = false) {
    state.page += by;
    draw();
    const target = last ? rows.lastElementChild : rows.firstElementChild;
    if (target && target.matches(".row")) target.focus();
  }

  // Moves the focus by one row, over the edge of a page too.
  function step(by) {
    const all = Array.from(rows.querySelectorAll(".row"));
    const current = all.indexOf(document.activeElement.closest(".row"));
    const target = all[current + by];
    if (target && (current >= 0 || by > 0)) target.focus();
    else if (by > 0 && current >= 0 && !next.disabled) turn(1);
    else if (by < 0 && current === 0 && !previous.disabled) turn(-1, true);
  }

  tabs.addEventListener("keydown", (event) => {
    const shown = Array.from(tabs.children, (tab) => tab.dataset.key);
    const at = shown.indexOf(state.tab);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: shown.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    choose(shown[(to + shown.length) % shown.length]);
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target === search && event.key === "Escape") search.blur();
    if (event.target.matches("input, select, textarea") || document.querySelector("dialog[open]")) return;
    const tab = /^[1-9]$/.test(event.key) && tabs.children[Number(event.key) - 1];
    if (tab) return choose(tab.dataset.key);
    const act = { j: () => step(1), k: () => step(-1), n: () => next.disabled || turn(1), p: () => previous.disabled || turn(-1),
      "/": () => search.focus() }[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  });
  let waiting = 0;
  search.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => { state.query = search.value.trim(); state.page = 0; draw(); }, 120);
  });
  previous.addEventListener("click", () => turn(-1));
  next.addEventListener("click", () => turn(1));

  // A choice of arms; what stands before them has the value null.
  function armSelect(name, before) {
    const select = make("select", { id: "gallery-" + name });
    [...before, ...data.arms].forEach((arm, i) => select.append(make("option", { value: String(i - before.length) }, arm)));
    select.value = String(state[name] === null ? -1 : state[name]);
    select.addEventListener("change", () => {
      state[name] = select.value === "-1" ? null : Number(select.value);
      state.page = 0;
      draw();
    });
    return select;
  }

  const controls = make("div", { class: "controls" });
  if (data.arms.length > 1) {
    controls.append(make("label", { for: "gallery-second" }, "Answers of"), armSelect("second", []),
      make("label", { for: "gallery-first" }, "against"), armSelect("first", ["nothing"]));
  }
  controls.append(make("label", { for: "gallery-search" }, "Search"), search);
  const legend = make("p", { class: "note keys" });
  for (const [key, what] of [["j", "next row"], ["k", "row before"], ["n", "next page"], ["p", "page before"], ["1", "first class, and so on"], ["/", "search"]]) {
    legend.append(make("kbd", {}, key), " " + what + "\u2003");
  }
  document.querySelectorAll(".examples .enlarge[data-row]").forEach((button) => {
    const row = data.rows.find((one) => one.id === button.dataset.row);
    if (row) button.replaceChildren(withMarks(button.querySelector("img"), row));
  });
  app.append(controls, tabs, explained, panel, make("div", { class: "pager" }, previous, status, next), legend);
  draw();
})();
