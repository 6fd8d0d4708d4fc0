// One answer at a time. What is shown as judged is on disk.
(async () => {
  const { items, start } = await act("items");
  let at = start;
  let saves = Promise.resolve();

  const judged = () => items.filter((item) => item.verdict).length;
  const open = () => items.findIndex((item) => !item.verdict);
  const written = (text) => make("p", { class: "written", dir: "auto" }, text === "" ? "(empty)" : text);

  function asked(item) {
    const parts = item.earlier.flatMap((turn) => [make("p", { class: "label" }, turn.role), written(turn.text)]);
    parts.push(make("p", { class: "label" }, "Question"), written(item.question));
    if (item.references.length) parts.push(make("p", { class: "label" }, item.references.length > 1 ? "References" : "Reference"));
    return [...parts, ...item.references.map(written)];
  }

  function pictures(item) {
    return item.images.map((name, i) =>
      make("img", { src: "image/" + name, alt: "Image " + (i + 1) + " of " + item.images.length + " of the question" }));
  }

  function draw() {
    const ended = at >= items.length;
    byId("progress").max = items.length;
    byId("progress").value = judged();
    byId("count").textContent = judged() + " of " + items.length + " answers judged";
    byId("item").hidden = ended;
    byId("end").hidden = !ended;
    byId("back").disabled = at === 0;
    byId("forward").disabled = ended;
    if (ended) {
      const left = items.length - judged();
      byId("left").textContent = left ? left + (left === 1 ? " answer has" : " answers have") + " no verdict yet." : "All answers are judged.";
      byId("open").hidden = left === 0;
      byId("end").focus();
      return;
    }
    const item = items[at];
    byId("place").textContent = "Answer " + (at + 1) + " of " + items.length;
    byId("item").classList.toggle("plain", item.images.length === 0);
    byId("pictures").replaceChildren(...pictures(item));
    byId("asked").replaceChildren(...asked(item));
    byId("answer").textContent = item.answer === "" ? "(empty)" : item.answer;
    byId("accept").setAttribute("aria-pressed", String(item.verdict === "accept"));
    byId("reject").setAttribute("aria-pressed", String(item.verdict === "reject"));
    byId("note").value = item.note;
    byId("item").focus({ preventScroll: true });
    for (const name of (items[at + 1] || { images: [] }).images) new Image().src = "image/" + name;  // ready when it is its turn
  }

  function go(to) {
    at = Math.min(Math.max(to, 0), items.length);
    draw();
    window.scrollTo(0, 0);
  }

  // One after the other, so that the last one given is the last one written. False where it is not: the page says why.
  function save(index, verdict, note) {
    saves = saves.then(async () => {
      await act("grade", { item: index, verdict, note });
      Object.assign(items[index], { verdict, note });
      return true;
    }).catch(() => false);
    return saves;
  }

  async function judge(verdict) {
    const here = at;
    if (here < items.length && await save(here, verdict, byId("note").value) && at === here) go(here + 1);
  }

  byId("note").addEventListener("change", () => {
    const item = items[at], note = byId("note").value;
    if (item.verdict) save(at, item.verdict, note);
    else item.note = note;
  });
  const does = {
    accept: () => judge("accept"), reject: () => judge("reject"), skip: () => go(at + 1), back: () => go(at - 1),
    forward: () => go(at + 1), open: () => go(open()),
    finish: async () => {
      await act("done");
      document.querySelector("main").replaceChildren(make("p", { class: "sentence", role: "status" },
        judged() + " of " + items.length + " answers judged. You can close this page; the result is in the terminal."));
    },
  };
  for (const [name, action] of Object.entries(does)) byId(name).addEventListener("click", action);
  onKeys({ a: does.accept, r: does.reject, s: does.skip, n: () => byId("note").focus(), ArrowLeft: does.back, ArrowRight: does.forward });
  draw();
})();
