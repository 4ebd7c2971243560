// A QMP client over a connected socket: commands in order, events in a list that a test reads at leisure.

import type { Socket } from "node:net";
import { within } from "./patience.ts";

export type Members = Record<string, unknown>;

export interface QmpEvent {
  readonly event: string;
  readonly data: Members;
}

/** An error reply. The message is the monitor's words for people. */
export class QmpError extends Error {
  override readonly name = "QmpError";
  readonly errorClass: string;

  constructor(errorClass: string, description: string) {
    super(description);
    this.errorClass = errorClass;
  }
}

type Reply = (message: Members) => void;

export class QmpClient {
  /** Every event so far, in order. */
  readonly events: QmpEvent[] = [];
  readonly greeting: Promise<Members>;
  readonly #socket: Socket;
  readonly #replies: Reply[] = [];
  readonly #watchers = new Set<() => void>();
  #greet!: Reply;
  #partial = "";
  #ended: string | undefined;

  /** `lastWords` says why the other side hung up, for the errors of those who wait. */
  constructor(socket: Socket, lastWords: () => string = () => "") {
    this.#socket = socket;
    this.greeting = new Promise((resolve) => {
      this.#greet = resolve;
    });
    socket.setEncoding("utf8");
    socket.on("data", (text: string) => this.#received(text));
    socket.on("error", () => undefined);
    socket.on("close", () => this.#hungUp(lastWords()));
  }

  /** Runs a command and gives its return value. @throws QmpError the monitor's error */
  async execute(command: string, args?: Members): Promise<unknown> {
    const message = { execute: command, ...(args === undefined ? {} : { arguments: args }) };
    return returned(await this.exchange(JSON.stringify(message)));
  }

  /** Sends a text as it is and gives the message that answers it. */
  exchange(text: string): Promise<Members> {
    if (this.#ended !== undefined) return Promise.reject(new Error(this.#ended));
    const reply = new Promise<Members>((resolve) => this.#replies.push(resolve));
    this.#socket.write(text + "\n");
    return within(this.#orHangUp(reply), () => `no reply to ${text}`);
  }

  /** The place in the list of events that the next one will have: where a later wait may begin. */
  get mark(): number {
    return this.events.length;
  }

  /** The first event from `from` on that `wanted` accepts, also if it is there already. */
  waitFor(wanted: (event: QmpEvent) => boolean, from = 0): Promise<QmpEvent> {
    let at = from;
    const found = new Promise<QmpEvent>((resolve, reject) => {
      const look = (): void => {
        while (at < this.events.length) {
          const event = this.events[at++]!;
          if (!wanted(event)) continue;
          this.#watchers.delete(look);
          resolve(event);
          return;
        }
        if (this.#ended !== undefined) reject(new Error(this.#ended));
      };
      this.#watchers.add(look);
      look();
    });
    return within(found, () => `the event did not come; there were ${JSON.stringify(this.events)}`);
  }

  /** Takes the limit off a job, if it has not ended by itself. */
  async hurry(id: string): Promise<void> {
    await this.execute("block-job-set-speed", { device: id, speed: 0 }).catch((error: unknown) => {
      if (!(error instanceof QmpError) || error.errorClass !== "DeviceNotActive") throw error;
    });
  }

  /** Waits until the job has this status. */
  async waitForStatus(id: string, status: string, from = 0): Promise<void> {
    await this.waitFor((event) => isStatus(event, id, status), from);
  }

  /** Waits until the job is gone; gives its last BLOCK_JOB_... event. @throws when it ended with an error */
  async waitForEnd(id: string, from = 0): Promise<QmpEvent> {
    const ended = await this.waitFor(
      (event) => /^BLOCK_JOB_(COMPLETED|CANCELLED)$/.test(event.event) && event.data["device"] === id,
      from,
    );
    await this.waitForStatus(id, "null", this.events.indexOf(ended));
    if (ended.data["error"] !== undefined) throw new Error(`job ${id} failed: ${ended.data["error"]}`);
    return ended;
  }

  /** Statuses and BLOCK_JOB_... events of one job in short: what a test compares with QEMU's order. */
  story(id: string, from = 0): string[] {
    const told: string[] = [];
    for (const { event, data } of this.events.slice(from)) {
      if (event === "JOB_STATUS_CHANGE" && data["id"] === id) told.push(String(data["status"]));
      else if (event.startsWith("BLOCK_JOB_") && (data["device"] ?? data["id"]) === id) told.push(event);
    }
    return told;
  }

  close(): void {
    this.#socket.destroy();
  }

  #orHangUp<T>(promise: Promise<T>): Promise<T> {
    return new Promise((resolve, reject) => {
      const look = (): void => {
        if (this.#ended !== undefined) reject(new Error(this.#ended));
      };
      this.#watchers.add(look);
      promise.then(resolve, reject).finally(() => this.#watchers.delete(look));
    });
  }

  #received(text: string): void {
    const lines = (this.#partial + text).split("\n");
    this.#partial = lines.pop()!;
    for (const line of lines) if (line.trim() !== "") this.#message(JSON.parse(line) as Members);
  }

  #message(message: Members): void {
    if ("QMP" in message) this.#greet(message);
    else if ("event" in message) this.#event(message);
    else this.#replies.shift()?.(message);
  }

  #event(message: Members): void {
    this.events.push({ event: String(message["event"]), data: (message["data"] ?? {}) as Members });
    for (const look of [...this.#watchers]) look();
  }

  #hungUp(words: string): void {
    this.#ended = `the monitor hung up${words === "" ? "" : `: ${words}`}`;
    for (const look of [...this.#watchers]) look();
  }
}

/** The return value of a reply. @throws QmpError */
export function returned(reply: Members): unknown {
  const error = reply["error"] as { class: string; desc: string } | undefined;
  if (error !== undefined) throw new QmpError(error.class, error.desc);
  return reply["return"];
}

export function isStatus(event: QmpEvent, id: string, status: string): boolean {
  return event.event === "JOB_STATUS_CHANGE" && event.data["id"] === id && event.data["status"] === status;
}
