// Puts answers onto the page. What is there is changed in place, and only where it differs, so that
// focus, scroll and selection stay. Names, ids and addresses come from strangers: they are only ever
// set as text, never as markup.

import * as words from "./words.js";

export const byId = (id) => document.getElementById(id);

function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function show(node, isShown) {
  if (node.hidden === isShown) node.hidden = !isShown;
}

/** Shows a text in a node, and the node only if there is one. */
function sayOrHide(node, text) {
  show(node, Boolean(text));
  say(node, text || "");
}

function set(node, name, value) {
  if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
}

/**
 * Gives a parent one child for each item, in their order. A child stays the same node as long as its
 * item's key is there, and moves only if it must: to be moved takes the focus away.
 */
function each(parent, items, keyOf, template, fill) {
  const wanted = new Map([...items].map((item) => [String(keyOf(item)), item]));
  for (const node of [...parent.children]) if (!wanted.has(node.dataset.key)) node.remove();
  const old = new Map([...parent.children].map((node) => [node.dataset.key, node]));
  let at = parent.firstElementChild;
  for (const [key, item] of wanted) {
    const node = old.get(key) ?? byId(template).content.firstElementChild.cloneNode(true);
    node.dataset.key = key;
    if (node === at) at = at.nextElementSibling;
    else parent.insertBefore(node, at);
    fill(node, item);
  }
}

/** The instance and its cluster. */
export function status(status, troubleSince) {
  const { tone, line, trouble } = words.stateWords(status);
  state(tone, line);
  sayOrHide(byId("trouble"), trouble && `${trouble} It has been so since ${troubleSince} at least.`);
  say(byId("whose"), `instance ${status.node}`);
  set(byId("whose"), "title", `cluster ${status.cluster}, version ${status.version}, term ${status.term}`);
  document.title = `${tone === "good" ? "" : "⚠ "}EMNetChain ${status.node}`;
  figures(status);
  members(status);
  show(byId("shown"), true);
}

const SIGNS = { good: "●", warn: "▲", bad: "✕", none: "…" };

function state(tone, line) {
  set(byId("state"), "data-tone", tone);
  say(byId("state").querySelector(".sign"), SIGNS[tone]);
  say(byId("state").querySelector(".words"), line);
}

/** How fresh everything is: `since` tells when the last answer came, if there is none now. */
export function freshness(pulse, since) {
  say(byId("pulse"), pulse);
  document.body.classList.toggle("stale", since !== null);
  sayOrHide(byId("stale"), since);
  if (since !== null) state("bad", "This instance does not answer");
}

function figures({ chains, applied_index: applied }) {
  const all = [
    ["chains", chains.count], ["clients known", chains.clients], ["links", chains.links],
    ["waiting", chains.asks], ["gaps", chains.broken_links], ["repairs", chains.repairs_pending],
    ["entries applied", applied],
  ];
  each(byId("figures"), all, ([name]) => name, "figure", (node, [name, number]) => {
    say(node.querySelector("dt"), name);
    say(node.querySelector("dd"), words.count(number));
    node.classList.toggle("warn", name === "gaps" && number > 0);
  });
}

function members(status) {
  each(byId("members"), status.members, (member) => member.node, "member-row", (row, member) => {
    const isThis = member.node === status.node;
    say(row.querySelector("th"), String(member.node));
    say(row.querySelector(".role"), words.roleWords(member, status));
    say(row.querySelector(".at"), member.address || "–");
    say(row.querySelector(".lag"), member.lag === null ? "?" : words.count(member.lag));
    say(row.querySelector(".heard"), heardWords(member, isThis));
    row.classList.toggle("warn", member.silent_ms !== null && !words.isHeard(member));
  });
  const isLeaderElsewhere = status.role !== "leader" && status.leader !== null && status.trouble === null;
  sayOrHide(byId("lag-note"), isLeaderElsewhere &&
    `Only the leader knows which lag and which are heard: see the page of instance ${status.leader}.`);
}

function heardWords(member, isThis) {
  if (isThis) return "this one";
  return member.silent_ms === null ? "?" : `${words.duration(member.silent_ms)} ago`;
}

/** The list of chains; `hrefOf` makes the link to one. */
export function list(answer, view, hrefOf) {
  for (const button of document.querySelectorAll("[data-order]")) {
    set(button, "aria-pressed", button.dataset.order === view.order);
  }
  each(byId("list"), answer.chains, (chain) => chain.name, "chain-row", (row, chain) => {
    const link = row.querySelector("a");
    set(link, "href", hrefOf(chain.name));
    if (chain.name === view.chain) set(link, "aria-current", "true");
    else link.removeAttribute("aria-current");
    name(row.querySelector("bdi"), chain.name);
    say(row.querySelector(".size"), words.counted(chain.clients, "client"));
    sayOrHide(row.querySelector(".gaps"), chain.broken_links ? words.counted(chain.broken_links, "gap") : "");
  });
  sayOrHide(byId("list-note"), listNote(answer, view));
}

function listNote({ chains, more, total }, view) {
  if (more) return `${words.count(chains.length)} of ${words.count(total)}; find others by name`;
  if (chains.length > 0) return "";
  if (view.prefix !== null) return "No name begins so.";
  return view.order === "broken" ? "No chain is broken." : "There is no chain yet.";
}

/** A chain's name; the one without a name must not be mistaken for one that is called so. */
function name(node, chain) {
  say(node, words.chainName(chain));
  node.classList.toggle("unnamed", chain === "");
}

function title(text, chain) {
  say(byId("chain-title").querySelector("span"), text);
  say(byId("chain-title").querySelector("bdi"), chain);
}

const chainTitle = (chain) => (chain === "" ? title("The default chain", "") : title("Chain", chain));

/** No chain to draw, and why; `chain` is the name of the one that was asked for. */
export function noChain(chain, why) {
  if (chain === null) title("No chain", "");
  else chainTitle(chain);
  say(byId("summary"), why);
  for (const id of ["map", "steps"]) show(byId(id), false);
  byId("path").replaceChildren();
  for (const id of ["begin", "end", "cut-off"]) sayOrHide(byId(id), "");
}

/** The window of a chain; in it, the client that is explained is marked. */
export function chain(chain, known) {
  chainTitle(chain.name);
  say(byId("summary"), [
    words.counted(chain.clients, "client"), words.counted(chain.links, "link"),
    chain.broken_links === 0 ? "no gap" : words.counted(chain.broken_links, "gap"),
    ...(chain.cut_off === 0 ? [] : [`${words.counted(chain.cut_off, "client")} cut off`]),
  ].join(" · "));
  sayOrHide(byId("cut-off"), chain.runs_cut_off.map(words.runCutOff).join(" "));
  map(chain);
  const rows = chain.window.map((client, at) => ({ client, next: chain.window[at + 1] ?? null }));
  each(byId("path"), rows, ({ client }) => client.serial, "client-row", (row, { client, next }) => {
    clientCard(row, client, known?.client?.serial === client.serial ? known.part : null);
    join(row, client, next, chain.later);
  });
  sayOrHide(byId("begin"), beginWords(chain));
  sayOrHide(byId("end"), endWords(chain));
}

function clientCard(row, client, foundPart) {
  say(row.querySelector(".serial"), `#${client.serial}`);
  for (const part of ["tail", "head"]) {
    const button = row.querySelector(`button.${part}`);
    say(button.querySelector("bdi"), client[part]);
    set(button, "value", client[part]);
    set(button, "title", `Explain ${client[part]}`);
    button.classList.toggle("found", part === foundPart);
  }
  row.classList.toggle("found", foundPart !== null);
  const since = words.duration(client.joined_ms);
  say(row.querySelector(".about"), `instance ${client.instance} · joined ${since} ago`);
}

/** What is between a client's head and the tail of the next one, or after the last one. */
function join(row, client, next, isLater) {
  const { head_side: head } = client;
  const tail = next?.tail_side ?? null;
  const kind = kindOfJoin(head, next, isLater);
  set(row, "data-kind", kind);
  const isSaid = kind === "gap" || (kind === "tip" && head.state !== "open");
  say(row.querySelector(".what"), joinWords(kind, head, tail));
  side(row.querySelector(".side.head"), isSaid ? head : null);
  side(row.querySelector(".side.tail"), kind === "gap" ? tail : null);
}

function joinWords(kind, head, tail) {
  switch (kind) {
    case "link": return words.linkWords(head);
    case "gap": return words.gapWords(head, tail);
    case "tip": return words.tipWords(head);
    default: return ""; // cut off by the window's edge
  }
}

function kindOfJoin(head, next, isLater) {
  if (next !== null) return head.state === "linked" && head.partner === next.tail ? "link" : "gap";
  if (!isLater) return "tip";
  return head.state === "linked" ? "cut" : "gap";
}

/** What one side does, with the id that its client chose, set apart from our own words. */
function side(node, side) {
  show(node, side !== null);
  if (side === null) return;
  say(node.querySelector("span"), words.sideWords(side));
  sayOrHide(node.querySelector("bdi"), side.state === "asking" ? side.id : null);
}

function beginWords(chain) {
  if (chain.earlier) return "… earlier clients";
  const [oldest] = chain.window;
  if (!oldest) return "";
  const tail = oldest.tail_side;
  return tail.state === "open" ? "The oldest" : `The oldest; its tail ${words.sideWords(tail)}`;
}

const endWords = (chain) => (chain.later ? "… later clients" : "");

/** The strip: where the gaps are, and which part of the chain is drawn below. */
function map(chain) {
  const isPart = chain.earlier || chain.later;
  show(byId("map"), isPart);
  show(byId("steps"), isPart || chain.gaps.length > 0);
  const span = Math.max(1, chain.last - chain.first);
  const place = (serial) => (1000 * (serial - chain.first)) / span;
  const first = chain.window[0]?.serial ?? chain.first;
  const [begin, end] = [place(first), place(chain.window.at(-1)?.serial ?? first)];
  set(byId("window"), "x", begin);
  set(byId("window"), "width", Math.max(4, end - begin));
  set(byId("gaps"), "d", chain.gaps.map((serial) => `M${place(serial).toFixed(1)} 0v10`).join(""));
  const strip = byId("strip");
  set(strip, "min", chain.first);
  set(strip, "max", chain.last);
  // A hand that drags it is not to be disturbed.
  if (!strip.matches(":active")) strip.value = first;
  set(strip, "aria-valuetext", `client #${first}`);
  const { earlier, later } = chain;
  const possible = { oldest: earlier, earlier, later, newest: later, gap: chain.gaps.length > 0 };
  for (const button of byId("steps").children) {
    button.disabled = !possible[button.dataset.go];
    show(button, isPart || button.dataset.go === "gap");
  }
}

/** What is known of a socket: an answer, or why there is none. */
export function explanation(address, answer, refusal) {
  show(byId("explanation"), address !== null);
  if (address === null) return;
  say(byId("explained"), address);
  const says = refusal === null ? answer.says : [refusal];
  each(byId("says"), says.entries(), ([at]) => at, "line", (row, [, text]) => say(row, text));
  const events = answer?.events ?? [];
  each(byId("events"), events, (event) => `${event.entry} ${event.text}`, "event-row", (row, event) => {
    say(row.querySelector(".ago"), `${words.duration(event.ago_ms)} ago`);
    say(row.querySelector(".text"), event.text);
    sayOrHide(row.querySelector(".request"), event.request && `request ${event.request}`);
  });
  say(byId("history"), answer === null ? "" : historyWords(events, answer.history));
}

function historyWords(events, history) {
  if (history.since_ms === null) return "This instance remembers nothing yet.";
  const reach = `This instance remembers the last ${words.duration(history.since_ms)}.`;
  return events.length === 0 ? `Nothing of it is remembered. ${reach}` : reach;
}

/** Brings a client of the window, or the gap after it, into sight. */
export function reveal(serial, part) {
  const row = byId("path").querySelector(`[data-key="${serial}"]`);
  const isCalm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  row?.querySelector(part).scrollIntoView({ block: "center", behavior: isCalm ? "auto" : "smooth" });
  return Boolean(row);
}
