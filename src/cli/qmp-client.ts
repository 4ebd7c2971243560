// A QMP connection as the commands use it: greeting, capabilities, one answer per command, events in between.
//
//   1. Answers come in the order of the commands, so no ids are needed.
//   2. When the daemon hangs up, everything that waits is told so; nothing waits for ever.

import { createConnection, type Socket } from "node:net";
import { type Clock, systemClock } from "../base/clock.ts";
import { BlockError, type ErrorCode } from "../base/errors.ts";

type Members = Record<string, unknown>;

/** A QMP event: name, members, and when (milliseconds since 1970). */
export interface QmpEvent {
  readonly name: string;
  readonly data: Members;
  readonly atMs: number;
}

interface Waiting {
  readonly resolve: (value: unknown) => void;
  readonly reject: (error: BlockError) => void;
}

/** What one message of a daemon may weigh; more is no answer to anything that we ask. */
const MESSAGE_CHARACTERS_MAX = 64 * 1024 * 1024;

/** How long a daemon may take to greet. */
const GREETING_MS_MAX = 5000;

const CODES_BY_CLASS: Readonly<Record<string, ErrorCode>> = {
  DeviceNotFound: "DEVICE_NOT_FOUND",
  DeviceNotActive: "JOB_NOT_ACTIVE",
  CommandNotFound: "COMMAND_NOT_FOUND",
};

/** What commands need of a connection. */
export interface QmpConnection {
  execute(command: string, args?: Members): Promise<unknown>;
  onEvent(listener: (event: QmpEvent) => void): () => void;
}

export class QmpClient implements QmpConnection {
  readonly path: string;
  readonly #socket: Socket;
  readonly #waiting: Waiting[] = [];
  readonly #listeners = new Set<(event: QmpEvent) => void>();
  #partial = "";
  #failure: BlockError | undefined;

  private constructor(path: string, socket: Socket) {
    this.path = path;
    this.#socket = socket;
    socket.setEncoding("utf8");
    socket.on("data", (text: string) => this.#received(text));
    socket.on("error", (error) => this.#hungUp(error));
    socket.on("close", () => this.#hungUp());
  }

  /** @throws BlockError ENOENT when nobody listens at `path`, EBUSY when it does not answer */
  static async connect(path: string, clock: Clock = systemClock): Promise<QmpClient> {
    const socket = createConnection(path);
    await new Promise<void>((resolve, reject) => {
      socket.once("connect", resolve);
      socket.once("error", (error) => reject(connectError(path, error)));
    });
    const client = new QmpClient(path, socket);
    const forget = clock.after(GREETING_MS_MAX, () => {
      const why = "another client may have it: a character device takes one at a time";
      client.#hungUp(new BlockError("EBUSY", `the daemon at '${path}' does not answer; ${why}`));
      socket.destroy();
    });
    try {
      await client.#answer();
      await client.execute("qmp_capabilities");
      return client;
    } finally {
      forget();
    }
  }

  /** Runs a command and gives what it returns. @throws BlockError with the daemon's words */
  async execute(command: string, args?: Members): Promise<unknown> {
    if (this.#failure !== undefined) throw this.#failure;
    this.#socket.write(JSON.stringify({ execute: command, ...(args && { arguments: args }) }) + "\n");
    return this.#answer();
  }

  /** Calls back for every event; the result ends that. */
  onEvent(listener: (event: QmpEvent) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  close(): void {
    this.#socket.destroy();
  }

  #answer(): Promise<unknown> {
    return new Promise((resolve, reject) => this.#waiting.push({ resolve, reject }));
  }

  #received(text: string): void {
    const lines = (this.#partial + text).split("\n");
    this.#partial = lines.pop()!;
    if (this.#partial.length > MESSAGE_CHARACTERS_MAX) this.#socket.destroy();
    for (const line of lines) if (line.trim() !== "") this.#message(line);
  }

  #message(line: string): void {
    let message: Members;
    try {
      message = JSON.parse(line) as Members;
    } catch {
      this.#hungUp(new Error("what listens there does not speak QMP"));
      this.#socket.destroy();
      return;
    }
    if (typeof message["event"] === "string") {
      this.#tell(message);
      return;
    }
    const waiting = this.#waiting.shift();
    const error = message["error"] as { class: string; desc: string } | undefined;
    if (error === undefined) waiting?.resolve(message["return"]);
    else waiting?.reject(new BlockError(CODES_BY_CLASS[error.class] ?? "EINVAL", error.desc));
  }

  #tell(message: Members): void {
    const { seconds, microseconds } = message["timestamp"] as { seconds: number; microseconds: number };
    const atMs = seconds * 1000 + microseconds / 1000;
    const event = { name: message["event"] as string, data: (message["data"] ?? {}) as Members, atMs };
    for (const listener of this.#listeners) listener(event);
  }

  #hungUp(cause?: Error): void {
    const why = cause === undefined ? "" : `: ${cause.message}`;
    this.#failure ??=
      cause instanceof BlockError
        ? cause
        : new BlockError("ESHUTDOWN", `the daemon at '${this.path}' hung up${why}`, cause);
    for (const waiting of this.#waiting.splice(0)) waiting.reject(this.#failure);
  }
}

function connectError(path: string, error: NodeJS.ErrnoException): BlockError {
  if (error.code === "ENOENT" || error.code === "ECONNREFUSED") {
    return new BlockError(
      "ENOENT",
      `no daemon listens at '${path}': start one with 'strata serve DISK'`,
      error,
    );
  }
  return new BlockError("EACCES", `cannot reach the daemon at '${path}': ${error.message}`, error);
}
