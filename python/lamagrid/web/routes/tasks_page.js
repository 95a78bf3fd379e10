"use strict";
const EVERY_MS = 1000;
const WORKING = new Set(["queued", "processing"]);
const list = document.getElementById("tasks");

function text(tag, className, content) {
  const node = document.createElement(tag);
  node.className = className;
  node.textContent = content;
  return node;
}

function story(task) {
  switch (task.state) {
    case "queued": {
      const before = task.position === null ? "waits"
        : task.position === 0 ? "waits, and is the next one"
        : `waits, ${task.position} before it`;
      return task.expected_wait_s ? `${before}, about ${Math.ceil(task.expected_wait_s)} s` : before;
    }
    case "processing":
      return (task.activity === "loading" ? (task.of > 0 ? `the model is fetched, ${task.step} %` : "the model is loaded")
        : task.of > 1 ? `step ${task.step} of ${task.of}` : "being worked on")
        + (task.node ? `, by ${task.node}` : "");
    case "completed": return "done";
    case "cancelled": return "cancelled";
    default: return `failed: ${task.failure || "no reason is known"}`;
  }
}

async function cancel(id, button) {
  button.disabled = true;
  await fetch(`grid/tasks/${id}/cancel`, { method: "POST" });
  await look();
}

function row(task) {
  const item = document.createElement("li");
  item.dataset.state = task.state;
  item.dataset.task = task.id;
  const top = text("div", "top", "");
  top.append(
    text("span", "what", task.what),
    text("span", "when", new Date(task.created * 1000).toLocaleTimeString()));
  if (WORKING.has(task.state)) {
    const button = text("button", "", "Cancel");
    button.addEventListener("click", () => cancel(task.id, button));
    top.append(button);
  }
  item.append(top, text("div", task.state, story(task)));
  if (task.state === "processing") {
    const bar = document.createElement("progress");
    if (task.of > 1) { bar.max = task.of; bar.value = task.step; }
    item.append(bar);
  }
  if (task.has_result) {
    const link = text("a", "result", "Show the picture");
    link.href = `grid/tasks/${task.id}/result`;
    item.append(link);
  }
  item.append(text("div", "id", task.id));
  return item;
}

let shown = "";
async function look() {
  const away = document.getElementById("away");
  try {
    const answer = await fetch("grid/tasks", { cache: "no-store" });
    if (!answer.ok) throw new Error(answer.statusText);
    const told = await answer.text();
    away.hidden = true;
    if (told === shown) return;
    shown = told;
    const tasks = JSON.parse(told).tasks;
    document.getElementById("none").hidden = tasks.length > 0;
    list.replaceChildren(...tasks.map(row));
  } catch {
    away.hidden = false;
  }
}

(async () => {
  for (;;) {
    await look();
    await new Promise(done => setTimeout(done, EVERY_MS));
  }
})();
