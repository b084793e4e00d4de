// What is looked at, and when the instance is asked. The view (which chain, which part of it, which
// socket) lives in the address line behind the #, so that it can be shared, reloaded and gone back
// from. The instance is asked again and again, one question at a time, while the page is shown.

import * as draw from "./draw.js";

const { byId } = draw;

/** How long to wait between two looks, and at most after failures. */
const PAUSE_MS = 1000, PAUSE_MAX_MS = 10_000;

/** An answer that takes longer than this is none. */
const PATIENCE_MS = 5000;

/** What is shown is called old when the next answer is so much overdue, for any reason. */
const OVERDUE_MS = 2500;

const CHAINS_MAX = 50, WINDOW_MAX = 50;

// ---- the view

const ORDERS = ["size", "broken", "name"];

/**
 * `chain`: a name; null for the first that is there. `from`: the serial with which the window begins,
 * "oldest" or "newest"; null to go where `address` is. `before`: the serial before which it ends.
 * `address`: the socket that is explained.
 */
const AT_REST = { chain: null, from: null, before: null, address: null, order: "size", prefix: null };

function viewOf(fragment) {
  const given = new URLSearchParams(fragment.slice(1));
  const [order, prefix] = [given.get("order"), given.get("prefix")];
  return {
    chain: given.get("chain"),
    from: given.get("from"),
    before: given.get("before"),
    address: given.get("address"),
    // Only names have a beginning.
    order: prefix !== null ? "name" : ORDERS.includes(order) ? order : "size",
    prefix,
  };
}

function fragmentOf(view) {
  const isSaid = ([key, value]) => value !== AT_REST[key];
  return `#${new URLSearchParams(Object.entries(view).filter(isSaid))}`;
}

let view = viewOf(location.hash);

/** Looks elsewhere: a step that the browser's "back" undoes. */
function go(changes) {
  history.pushState(null, "", fragmentOf({ ...view, ...changes }));
  follow();
}

/** Says the same view in other words: no step of its own. */
function settle(changes) {
  view = { ...view, ...changes };
  if (location.hash !== fragmentOf(view)) history.replaceState(null, "", fragmentOf(view));
}

function follow() {
  view = viewOf(location.hash);
  lookNow();
}

// ---- asking

/** The instance understood the question, and has a sentence instead of an answer. */
class Refusal extends Error {}

async function ask(path, parameters = {}) {
  const given = Object.entries(parameters).filter(([, value]) => value !== null);
  // Without a slash in front, so that a proxy may have us below a path of its own.
  const response = await fetch(`${path}?${new URLSearchParams(given)}`, {
    cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS),
  });
  const answer = await response.json();
  if (response.ok) return answer;
  // The token was changed, or the browser has lost it: its form is where this page is.
  if (response.status === 403) location.reload();
  if (response.status >= 400 && response.status < 500 && answer.error) throw new Refusal(answer.error);
  throw new Error(`${path}: ${response.status}`);
}

/** An answer, or the sentence instead of it; throws if there is neither. */
async function tryAsk(path, parameters) {
  try {
    return [await ask(path, parameters), null];
  } catch (error) {
    if (error instanceof Refusal) return [null, error.message];
    throw error;
  }
}

/** Which part of a chain to ask for. */
function windowOf({ from, before }) {
  if (before !== null) return { before };
  if (from === "newest") return { before: Number.MAX_SAFE_INTEGER };
  return from === null || from === "oldest" ? {} : { from };
}

// ---- looking

let shown = null; // the window that is drawn, to step on from
let reveal = null; // what to bring into sight when it is drawn: [serial, part]
let lastGap = null; // the gap that "next gap" showed last
let troubleSince = null; // since when the instance says that it does not serve

/** Asks for all that is looked at, and draws it. */
async function look() {
  const asked = view;
  const status = await ask("status");
  const isInTrouble = status.leader === null || status.trouble !== null;
  troubleSince = isInTrouble ? troubleSince ?? clock() : null;
  draw.status(status, troubleSince);

  const list = await ask("api/v1/chains", { order: asked.order, prefix: asked.prefix, limit: CHAINS_MAX });
  const [known, refusal] = asked.address === null ? [null, null]
    : await tryAsk("api/v1/explain", { address: asked.address });
  draw.explanation(asked.address, known, refusal);

  const isSought = asked.address !== null && asked.from === null && asked.before === null;
  const found = isSought && known?.client ? known.client : null;
  const name = found?.chain ?? asked.chain ?? list.chains[0]?.name ?? null;
  const { order, prefix } = asked;
  draw.list(list, { ...asked, chain: name }, (chain) => fragmentOf({ ...AT_REST, order, prefix, chain }));
  if (name === null) {
    shown = null;
    draw.noChain(null, status.chains.count > 0 ? "Choose one from the list."
      : "Clients that connect appear here, each linked with the one before it.");
    return;
  }
  const part = found ? { at: asked.address } : windowOf(asked);
  const [chain, why] = await tryAsk("api/v1/chain", { name, limit: WINDOW_MAX, ...part });
  shown = chain;
  if (chain === null) draw.noChain(name, why);
  else drawChain(chain, asked, known, found !== null);
}

function drawChain(chain, asked, known, isSought) {
  draw.chain(chain, known);
  if (asked !== view) return; // the reader has gone on meanwhile: the next window is what counts
  if (isSought) reveal = [known.client.serial, ".card"];
  if (reveal !== null) draw.reveal(...reveal);
  reveal = null;
  if (asked.chain === null || isSought) settle({ chain: chain.name });
  const [first] = chain.window;
  const isShort = chain.earlier && !chain.later && chain.window.length < WINDOW_MAX / 2;
  if (isShort && asked.from !== null) settle({ from: "newest", before: null });
  // From now on the window stays where it is when a client leaves it.
  else if (first && (isSought || asked.before !== null)) settle({ from: String(first.serial), before: null });
}

// ---- being fresh

const clock = (at = new Date()) => at.toLocaleTimeString("en-GB");

let answeredAt = null; // when all was answered last
let dueAt = null; // when it should be answered again at the latest
let isFailing = false;

function drawFreshness() {
  const isStale = isFailing || (dueAt !== null && Date.now() > dueAt);
  const at = answeredAt === null ? null : clock(new Date(answeredAt));
  const since = at === null ? "It has not answered since this page was opened."
    : `No answer since ${at}. What is shown is from then; this page goes on asking.`;
  draw.freshness(isStale || at === null ? "" : `live, ${at}`, isStale ? since : null);
}

let wake = null, isWanted = false;

/** Asks again without waiting for its turn. */
function lookNow() {
  isWanted = true;
  wake?.();
}

async function pause(ms) {
  if (!isWanted) {
    await new Promise((resolve) => {
      wake = resolve;
      if (!document.hidden) setTimeout(resolve, ms);
    });
  }
  [wake, isWanted] = [null, false];
}

async function watch() {
  let failures = 0;
  for (;;) {
    const began = performance.now();
    try {
      await look();
      failures = 0;
      answeredAt = Date.now();
    } catch (error) {
      failures += 1;
      console.warn(error);
    }
    // One broken connection proves nothing; it is asked again at once.
    isFailing = failures > 1;
    const rest = failures > 0 ? pauseAfter(failures) : pauseAfterAnswer(performance.now() - began);
    dueAt = answeredAt && answeredAt + rest + OVERDUE_MS;
    drawFreshness();
    await pause(rest);
  }
}

const pauseAfter = (failures) =>
  failures === 1 ? 0 : Math.min(PAUSE_MAX_MS, PAUSE_MS * 2 ** (failures - 2));

/** A page must not keep an instance busy: it asks a tenth of the time at most. */
const pauseAfterAnswer = (took) => Math.min(PAUSE_MAX_MS, Math.max(PAUSE_MS, 9 * took));

// ---- what people do

const STEPS = {
  oldest: () => go({ from: "oldest", before: null }),
  newest: () => go({ from: "newest", before: null }),
  earlier: () => go({ from: null, before: String(shown.window[0].serial) }),
  // One client of the old window stays in the new one, to see how they are joined.
  later: () => go({ from: String(shown.window.at(-1).serial), before: null }),
  gap: nextGap,
};

function nextGap() {
  const after = lastGap ?? shown.window[0].serial - 1;
  lastGap = shown.gaps.find((serial) => serial > after) ?? shown.gaps[0];
  reveal = [lastGap, ".join"];
  const at = shown.window.findIndex((client) => client.serial === lastGap);
  const isWhole = at >= 0 && (at + 1 < shown.window.length || !shown.later);
  if (isWhole) lookNow();
  else go({ from: String(lastGap), before: null });
}

byId("steps").addEventListener("click", ({ target }) => {
  const step = target.dataset.go;
  if (step !== "gap") lastGap = null;
  if (step && shown) STEPS[step]();
});

byId("strip").addEventListener("input", ({ target }) => {
  lastGap = null;
  view = { ...view, from: String(Math.round(target.value)), before: null };
  lookNow();
});
// Not while it is dragged: browsers forbid to change the address line that often.
byId("strip").addEventListener("change", () => settle({}));

byId("search").addEventListener("submit", (event) => {
  event.preventDefault();
  const address = byId("address").value.trim();
  if (address !== "") go({ address, from: null, before: null });
});

byId("path").addEventListener("click", ({ target }) => {
  const socket = target.closest("button.socket");
  if (!socket) return;
  // The window stays where it is.
  go({ address: socket.value, from: view.from ?? String(shown.window[0].serial) });
});

byId("close").addEventListener("click", () => {
  go({ address: null });
  byId("chain-title").focus();
});

for (const button of document.querySelectorAll("[data-order]")) {
  button.addEventListener("click", () => {
    byId("prefix").value = "";
    go({ order: button.dataset.order, prefix: null });
  });
}

byId("prefix").addEventListener("input", ({ target }) => {
  settle({ order: "name", prefix: target.value || null });
  lookNow();
});

byId("prefix").value = view.prefix ?? "";
byId("address").value = view.address ?? "";

addEventListener("hashchange", follow);
document.addEventListener("visibilitychange", () => { if (!document.hidden) lookNow(); });
setInterval(drawFreshness, 1000);
watch();
