// Golden conversations: what a monitor says, word for word, recorded from the reference and replayed against
// ours.
//
//   # ...                      a comment; kept
//   @raw NAME SIZE [data]      a raw file, sparse or patterned
//   @qcow2 NAME SIZE [BACKING [FORMAT]] [data]
//   > TEXT                     sent to the monitor as it is; the lines up to the next one are what came back
//   up to its reply
//   @wait EVENT [KEY=VALUE]    reads on until this event, which stands last below
//   < JSON                     a message of the reference
//   <! JSON                    what ours says instead of the message above, on purpose; a comment says why.
//   Kept.
//
// $DIR stands for the directory of the test. Timestamps are checked and left out.

import { createConnection } from "node:net";
import { basename } from "node:path";
import { makeQcow2Image, makeRawImage } from "./image-fixtures.ts";

type Message = Record<string, unknown>;

/** Members whose values are up to the host: their presence counts, not what they hold. */
const HOST_MEMBERS = new Set(["actual-size"]);

/** One connection to a monitor, line by line. */
export class MonitorClient {
  readonly #lines: string[] = [];
  readonly #waiting: ((line: string | undefined) => void)[] = [];
  readonly #socket: ReturnType<typeof createConnection>;
  #partial = "";
  #ended = false;

  constructor(path: string) {
    this.#socket = createConnection(path);
    this.#socket.setEncoding("utf8");
    this.#socket.on("data", (text: string) => this.#received(text));
    this.#socket.on("error", () => this.#end());
    this.#socket.on("close", () => this.#end());
  }

  send(text: string | Buffer): void {
    this.#socket.write(text);
  }

  /** The next line without its end; undefined when the other side hung up. */
  nextLine(): Promise<string | undefined> {
    const line = this.#lines.shift();
    if (line !== undefined || this.#ended) return Promise.resolve(line);
    return new Promise((resolve) => this.#waiting.push(resolve));
  }

  async nextMessage(): Promise<Message | undefined> {
    const line = await this.nextLine();
    return line === undefined ? undefined : (JSON.parse(line) as Message);
  }

  /** Sends a command and gives its return value or error; events in between are dropped. */
  async execute(command: string, args?: Message): Promise<Message> {
    this.send(
      JSON.stringify({ execute: command, ...(args === undefined ? {} : { arguments: args }) }) + "\n",
    );
    for (;;) {
      const message = await this.nextMessage();
      if (message === undefined) throw new Error("the monitor hung up");
      if ("return" in message || "error" in message) return message;
    }
  }

  close(): void {
    this.#socket.destroy();
  }

  #received(text: string): void {
    const lines = (this.#partial + text).split(/\r?\n/);
    this.#partial = lines.pop()!;
    for (const line of lines) {
      const waiting = this.#waiting.shift();
      if (waiting === undefined) this.#lines.push(line);
      else waiting(line);
    }
  }

  #end(): void {
    this.#ended = true;
    for (const waiting of this.#waiting.splice(0)) waiting(undefined);
  }
}

/** Makes the image files that the conversation's head asks for. */
export function makeImages(conversation: string, directory: string): void {
  for (const line of conversation.split("\n")) {
    const words = line.split(" ");
    const path = `${directory}/${words[1]}`;
    if (words[0] === "@raw") makeRawImage(path, Number(words[2]), words[3] === "data");
    if (words[0] === "@qcow2") {
      const patterned = words.at(-1) === "data";
      const [, , size, file, format] = patterned ? words.slice(0, -1) : words;
      const backing =
        file === undefined ? {} : { backing: { file, ...(format === undefined ? {} : { format }) } };
      makeQcow2Image(path, Number(size), { ...backing, patterned });
    }
  }
}

/** Daemon arguments of the conversation's `@start` lines, beside its monitor. */
export function startArguments(conversation: string, directory: string): string[] {
  return conversation
    .split("\n")
    .filter((line) => line.startsWith("@start "))
    .flatMap((line) => line.slice(7).replaceAll("$DIR", directory).split(" "));
}

/**
 * Holds the conversation with the monitor at `socketPath`; gives it back with the messages that really came.
 */
export async function converse(conversation: string, socketPath: string, directory: string): Promise<string> {
  const client = new MonitorClient(socketPath);
  const out: string[] = [];
  let heard: Message[] = [];
  const hearUntil = async (wanted: (message: Message) => boolean): Promise<void> => {
    while (!heard.some(wanted)) {
      const message = await Promise.race([client.nextMessage(), patience()]);
      out.push(`< ${message === undefined ? "(nothing more)" : written(message, directory)}`);
      if (message === undefined) return;
      heard.push(message);
    }
  };
  await client.nextMessage();
  await client.execute("qmp_capabilities");
  for (const line of conversation.split("\n")) {
    if (line.startsWith("< ")) continue;
    out.push(line);
    if (line.startsWith("> ")) {
      heard = [];
      client.send(line.slice(2).replaceAll("$DIR", directory) + "\n");
      await hearUntil((message) => "return" in message || "error" in message);
    } else if (line.startsWith("@wait ")) {
      const [, event, condition] = line.split(" ");
      await hearUntil((message) => message["event"] === event && holds(message, condition));
    }
  }
  client.close();
  return out.join("\n");
}

/**
 * How long a message may take before the conversation goes on without it: only a failing test ever waits for
 * it.
 */
function patience(): Promise<undefined> {
  return new Promise((resolve) => setTimeout(() => resolve(undefined), 5000).unref());
}

function holds(message: Message, condition: string | undefined): boolean {
  if (condition === undefined) return true;
  const [key, value] = condition.split("=");
  return String((message["data"] as Message)[key!]) === value;
}

function written(message: Message, directory: string): string {
  const { timestamp, ...rest } = message;
  if ("event" in rest) checkTimestamp(timestamp);
  return JSON.stringify(canonical(rest))
    .replaceAll(directory, "$DIR")
    .replace(/#block\d+/g, "#block");
}

/**
 * The reference describes a chain that was put together by hand as "json:{...}"; its last file is the image
 * itself. A fault filter over a file it calls "blkdebug::FILE".
 */
function plainName(text: string): string {
  if (text.startsWith("blkdebug::")) return text.slice("blkdebug::".length);
  return text.startsWith("json:") ? (/.*"filename": "([^"]*)"/.exec(text)?.[1] ?? text) : text;
}

function plainNumber(key: string, value: number, holder: Message): number {
  // The length of a host file depends on what an image's writer allocates first.
  if (HOST_MEMBERS.has(key) || (key === "virtual-size" && holder["format"] === "file")) return 0;
  // How far a job has come depends on the moment, and ours counts only what it really copies: all of it, or
  // not all.
  const { offset, len, "current-progress": current, "total-progress": total } = holder;
  if (key === "offset" || key === "len") return offset === len ? 1 : 0;
  if (key === "current-progress" || key === "total-progress") return current === total ? 1 : 0;
  return value;
}

/**
 * Members in order of the alphabet: the reference gives them in the order of its hash table. Of a backing
 * link, its last part: the reference tells the path that it would write, ours the link as it stands.
 */
function canonical(value: unknown): unknown {
  if (typeof value === "string") return plainName(value);
  if (Array.isArray(value)) return value.map(canonical);
  if (typeof value !== "object" || value === null) return value;
  const members = Object.entries(value)
    .filter(([key]) => key !== "full-backing-filename")
    .sort(([a], [b]) => (a < b ? -1 : 1));
  return Object.fromEntries(
    members.map(([key, held]) => [
      key,
      key === "backing-filename"
        ? basename(plainName(String(held)))
        : typeof held === "number"
          ? plainNumber(key, held, value as Message)
          : canonical(held),
    ]),
  );
}

function checkTimestamp(timestamp: unknown): void {
  const { seconds, microseconds } = timestamp as { seconds: number; microseconds: number };
  if (!Number.isInteger(seconds) || !(microseconds >= 0 && microseconds < 1e6)) {
    throw new Error(`odd timestamp ${JSON.stringify(timestamp)}`);
  }
}

// --- comparing ---------------------------------------------------------------------------------------------

/** One command and what came back, in a form in which two programs can be compared. */
export interface Section {
  readonly sent: string;
  readonly replies: string[];
  /** In order; without moments at which a job only stood still for a change of the graph. */
  readonly events: string[];
}

/**
 * The conversation by commands. Where the reply stands among the events is up to the moment; the order of the
 * events is not. `own` takes the `<!` lines in place of what the reference says.
 */
export function sections(conversation: string, own: boolean): Section[] {
  const result: Section[] = [];
  let heard: string[] = [];
  const finish = () => {
    const last = result.at(-1);
    if (last === undefined) return;
    last.replies.push(...heard.filter((line) => !isEvent(line)));
    last.events.push(...withoutDrains(heard.filter(isEvent)));
    heard = [];
  };
  for (const line of conversation.split("\n")) {
    if (line.startsWith("> ")) {
      finish();
      result.push({ sent: line.slice(2), replies: [], events: [] });
    } else if (line.startsWith("< ")) heard.push(withoutHolder(line.slice(2)));
    else if (line.startsWith("<! ") && own) {
      heard.pop();
      if (line !== "<! -") heard.push(line.slice(3));
    }
  }
  finish();
  return result;
}

/** Where the reference says that a job is in the way, ours adds which one. */
function withoutHolder(line: string): string {
  return line.replace(/(in use by block job: \w+) \(job '[^']*'\)/, "$1");
}

function isEvent(line: string): boolean {
  return line.includes('"event":"');
}

/** Drops a "paused" that is taken back at once, and a job that was refused between "created" and "null". */
function withoutDrains(events: readonly string[]): string[] {
  const left = [...events];
  for (let at = 0; at + 1 < left.length; at++) {
    if (left[at + 1] !== takenBack(left[at]!)) continue;
    left.splice(at, 2);
    at = Math.max(-1, at - 2);
  }
  return left;
}

function takenBack(event: string): string | undefined {
  if (event.includes('"status":"paused"')) return event.replace("paused", "running");
  return event.includes('"status":"created"') ? event.replace("created", "null") : undefined;
}
