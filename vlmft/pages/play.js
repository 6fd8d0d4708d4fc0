// One question at a time: what is shown is what this image was asked, in these words.
(async () => {
  const start = await act("start", null, "Not loaded: ");
  const STYLES = start.arms.length > 1 ? ["first", "second"] : ["second"];
  let picture = null;  // { picture, size }
  let answers = {};
  let asked = null;
  let busy = false;

  for (const name of ["question", "around", "system", "marks"]) byId(name).value = start[name];
  byId("notes").replaceChildren(...start.notes.map((note) => make("p", { class: "note" }, note)));
  byId("as-trained").open = Boolean(start.system);

  const sayKept = (lead, n) => {
    byId("kept").textContent = n || lead ? lead + n + (n === 1 ? " test case in " : " test cases in ") + start.file : "";
  };
  sayKept("", start.kept);

  function setBusy(text) {
    busy = text !== "";
    byId("busy").textContent = text;
    for (const name of ["ask", "file", "keep"]) byId(name).disabled = busy;
  }

  function drawPicture() {
    if (picture === null) return byId("picture").replaceChildren();
    const layers = start.arms.map((arm, i) => [STYLES[i], arm, (answers[arm] || { marks: [] }).marks]);
    byId("picture").replaceChildren(withLayers(make("img", { src: "image/" + picture.picture, alt: "The image that is asked about" }), picture.size, layers));
  }

  // Marks that are not seen, for no part of them lies on the picture.
  const outside = (found) => found.marks.filter(([[x, y, right = x, bottom = y]]) =>
    right < 0 || bottom < 0 || x > picture.size[0] || y > picture.size[1]).length;

  function drawSides() {
    const hasMarks = start.arms.some((arm) => answers[arm] && answers[arm].marks.length);
    const side = (arm, i) => {
      const found = answers[arm];
      const head = make("h3", {}, hasMarks ? make("span", { class: "mark-key key-" + STYLES[i] }, arm) : arm);
      if (!found) return make("article", {}, head, make("p", { class: "note" }, busy ? "\u2026" : "no answer"));
      const facts = found.seconds.toFixed(2) + " s, " + found.tokens + " tokens" + (found.cut ? ", cut there: max_new_tokens= allows more" : "") + (found.unread ? "; no boxes or points could be read" : "")
        + (outside(found) ? "; outside the picture: " + outside(found) : "");
      const parts = [head, make("p", { class: "written main", dir: "auto" }, found.text === "" ? "(empty)" : found.text), make("p", { class: "note" }, facts)];
      if (found.raw) parts.push(make("p", { class: "note" }, "As the model wrote it: " + found.raw));
      return make("article", {}, ...parts);
    };
    byId("sides").replaceChildren(...start.arms.map(side));
    byId("found").hidden = false;
  }

  // The fields of answers that are JSON, a column for each arm.
  function drawFields() {
    const columns = start.arms.map((arm) => new Map((answers[arm] || { fields: [] }).fields));
    const names = [...new Set(columns.flatMap((column) => [...column.keys()]))];
    const isCompared = columns.length > 1 && columns.every((column) => column.size);
    const differs = (name) => columns.some((column) => column.get(name) !== columns[0].get(name));
    const cell = (column, name) => make("td", { class: "text" }, column.has(name) ? column.get(name) ?? "null" : make("span", { class: "small" }, "\u2013"));
    const line = (name) => make("tr", {}, make("th", { scope: "row" }, name), ...columns.map((column) => cell(column, name)),
      ...(isCompared ? [make("td", { class: "text" }, differs(name) ? "differs" : "same")] : []));
    const heads = ["Field", ...start.arms, ...(isCompared ? ["Compared"] : [])];
    byId("fields").replaceChildren(...(names.length ? [make("table", { class: "fields" },
      make("thead", {}, make("tr", {}, ...heads.map((head) => make("th", { scope: "col", class: "text" }, head)))),
      make("tbody", {}, ...names.map(line)))] : []));
  }

  function clear() {
    answers = {};
    asked = null;
    for (const name of ["found", "keeping"]) byId(name).hidden = true;
    byId("reference").value = "";
  }

  const inBase64 = (file) => new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });

  function refuse(text) {
    byId("problem").hidden = false;
    byId("problem").textContent = text;
  }

  async function take(file) {
    if (busy || !file) return;
    clear();
    picture = null;
    drawPicture();
    byId("told").textContent = "";
    if (file.size === 0 || file.size > start.most) {
      const size = file.size ? Math.ceil(file.size / 1048576) + " MiB" : "none";
      return refuse("Not taken: Expected a file of at most " + start.most / 1048576 + " MiB, got " + size + " in " + file.name + "; scale the picture down");
    }
    setBusy("Reading the image\u2026");
    try {
      picture = await act("upload", { name: file.name, data: await inBase64(file) }, "Not taken: ");
      byId("told").textContent = [file.name, picture.size.join(" \u00d7 ") + " pixels", ...picture.notes].join("; ");
      drawPicture();
    } catch (error) {
      if (byId("problem").hidden) refuse("Not taken: " + error.message);
    } finally {
      setBusy("");
    }
  }

  async function ask() {
    if (busy) return;
    clear();
    drawPicture();
    const words = {};
    for (const name of ["question", "around", "system", "marks"]) words[name] = byId(name).value;
    try {
      setBusy("Asking\u2026");
      const one = await act("ask", { ...words, picture: picture ? picture.picture : "" }, "Not asked: ");
      byId("asked").textContent = words.around.replace("{question}", () => words.question);
      for (const arm of start.arms) {
        setBusy(arm + " answers\u2026");
        drawSides();
        answers[arm] = await act("answer", { case: one, arm }, arm + " did not answer: ");
        drawPicture();
      }
      asked = one;
      byId("keeping").hidden = false;
    } catch {
      // the page says why
    } finally {
      setBusy("");
      if (Object.keys(answers).length) drawSides();
      else byId("found").hidden = true;
      drawFields();
    }
  }

  async function keep() {
    if (busy || asked === null) return;
    try {
      const { id, kept } = await act("keep", { case: asked, reference: byId("reference").value });
      byId("keeping").hidden = true;
      sayKept("Kept as " + id + ". ", kept);
    } catch {
      // the page says why
    }
  }

  for (const arm of start.arms) {
    const copy = () => { byId("reference").value = answers[arm].text; byId("reference").focus(); };
    byId("take").append(make("button", { type: "button", click: copy }, "Begin with what " + arm + " said"));
  }
  const drop = byId("drop");
  drop.addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => { event.preventDefault(); drop.classList.remove("over"); take(event.dataTransfer.files[0]); });
  document.addEventListener("paste", (event) => { if (event.clipboardData.files.length) take(event.clipboardData.files[0]); });
  document.addEventListener("keydown", (event) => { if ((event.ctrlKey || event.metaKey) && event.key === "Enter") ask(); });
  byId("file").addEventListener("change", () => take(byId("file").files[0]));
  byId("ask").addEventListener("click", ask);
  byId("keep").addEventListener("click", keep);
  byId("finish").addEventListener("click", async () => {
    await act("done");
    document.querySelector("main").replaceChildren(make("p", { class: "sentence", role: "status" },
      "You can close this page; what was kept is in " + start.file + "."));
  });
})();
