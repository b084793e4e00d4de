// What is said about times, counts and sockets: functions of the instance's answers and nothing else.

const UNITS = [["day", 86_400_000], ["h", 3_600_000], ["min", 60_000], ["s", 1000]];

/** A time as people say it: "3 min 20 s", but "12 min", for a restless second unit tells nothing then. */
export function duration(ms) {
  const first = UNITS.findIndex(([, size]) => ms >= size);
  if (first < 0) return "< 1 s";
  const [name, size] = UNITS[first];
  const whole = Math.floor(ms / size);
  if (name === "day") return counted(whole, name);
  if (whole >= 10 || name === "s") return `${Math.round(ms / size)} ${name}`;
  const [restName, restSize] = UNITS[first + 1];
  const rest = Math.floor((ms % size) / restSize);
  return `${whole} ${name}` + (rest > 0 ? ` ${rest} ${restName}` : "");
}

export const count = (number) => number.toLocaleString("en");

/** "1 client", "2 clients". */
export const counted = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;

export const chainName = (name) => (name === "" ? "default" : name);

const LINES = {
  "open": "connected",
  "half-closed": "its connection is half closed",
  "offered": "its partner is offered to it, not yet confirmed",
  "detached": "its connection or instance is gone; it may come back",
};

const WAYS = {
  join: "as a newcomer",
  repair: "by repair",
  gather: "by gathering: those between were silent",
};

/** A run that is cut off from the path. */
export const runCutOff = (run) =>
  `${counted(run.clients, "client")} from #${run.first} on cut off for ${duration(run.since_ms)}: ${run.why}.`;

/** What one side of a gap, or of an end of the chain, is doing. */
export function sideWords(side) {
  switch (side.state) {
    case "asking":
      return [
        `waits for ${duration(side.since_ms)}, ${duration(side.left_ms)} left`,
        `${side.by} through instance ${side.instance}`,
        LINES[side.line] ?? side.line,
        ...(side.id === null ? [] : ["repair id"]), // which follows
      ].join(" · ");
    case "linked":
      return `is linked with ${side.partner}`;
    case "paired":
      return `is paired with ${side.partner}, no neighbour, for ${duration(side.since_ms)}`;
    case "reported":
      return `is silent: its partner said ${duration(side.since_ms)} ago that it is gone`;
    default:
      return "is silent: it has no partner and does not ask";
  }
}

export const linkWords = (side) => `linked for ${duration(side.since_ms)}, ${WAYS[side.by] ?? side.by}`;

export const tipWords = (head) => (head.state === "asking" ? "The newest: it waits for a newcomer"
  : "The newest; it does not wait for a newcomer now");

/** What a gap is about, in a few words. */
export function gapWords(head, tail) {
  const asking = [head, tail].filter((side) => side?.state === "asking");
  if (asking.length === 2) return "Gap: both sides wait, and are about to be linked";
  if (asking.length === 0) return "Gap: broken, and no client asks for a repair";
  const what = asking[0].by === "RECONNECT" ? "under repair" : "one side waits";
  return `Gap, ${what}: the other side has not asked yet`;
}

/** What a member is to the cluster. */
export function roleWords(member, status) {
  if (member.node === status.leader) return isHeard(member) ? "leader" : "leader, not heard";
  if (!member.voter) return "learner, no vote";
  return member.node === status.node ? status.role : status.leader === null ? "voter" : "follower";
}

/** Silence up to this long is what happens between two heartbeats. */
const HEARD_MS = 3000;

export const isHeard = (member) => member.silent_ms !== null && member.silent_ms <= HEARD_MS;

/**
 * The state of the instance in one line, with a tone: "good", "warn" or "bad"; and, in trouble, what
 * that means for its reader.
 */
export function stateWords(status) {
  if (status.trouble !== null) {
    return {
      tone: "bad",
      line: `Not serving · ${status.trouble}`,
      trouble: "No client that asks this instance is answered now. " +
        "The page shows its last known state, which may be old.",
    };
  }
  if (status.leader === null) {
    return {
      tone: "bad",
      line: "No leader · no client is answered now",
      trouble: "The cluster has no leader: no instance can answer a client until a majority of the voters " +
        "reaches each other. The page shows the last state that this instance knew, which may be old.",
    };
  }
  const { members } = status;
  if (members.length === 1) return { tone: "good", line: "Serving · alone, a cluster of one" };
  if (status.leader !== status.node) {
    return { tone: "good", line: `Serving · leader is instance ${status.leader}, and is heard` };
  }
  const heard = members.filter(isHeard).length;
  const tone = heard === members.length ? "good" : "warn";
  return { tone, line: `Serving · leader is this instance · ${heard} of ${members.length} members heard` };
}
