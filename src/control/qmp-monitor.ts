// A QMP monitor on a character device: one client after another, each with its own negotiation.
//
//   1. Commands of a client run one after the other, in order; each is answered before the next one begins.
//   2. Events go to every client that has ended its negotiation, in the order in which they happen.
//      Between two of them guests and other clients have a turn, however many came at once.
//   3. A client that sends without reading is slowed: beyond a few waiting commands, its input is not read.
//      One that does not read events is hung up on before it costs memory without bound.
//   4. What stood in a pipe or a file before its end is carried out, as in the reference.

import type { Writable } from "node:stream";
import { BlockError, ERROR_CODES, errorCode, errorMessage } from "../base/errors.ts";
import { MiB } from "../base/units.ts";
import type { Frontend, Peer } from "./chardev/chardev.ts";
import type { Daemon } from "./daemon.ts";
import { runCommand } from "./dispatch.ts";
import { JsonStream } from "./json-stream.ts";
import { isJsonObject, type JsonValue } from "./json-value.ts";
import { writeJson } from "./json-writer.ts";
import { qmpCapabilities } from "./qmp-negotiation.ts";
import { checkRequest } from "./qmp-request.ts";
import { VERSION_INFO } from "./version.ts";

/** Commands of one client that may wait, as in the reference. */
const WAITING_MAX = 8;
/** Bytes that a client may leave unread. */
const UNREAD_BYTES_MAX = 64 * MiB;

export interface QmpMonitorSettings {
  /** Answers and events over several lines. */
  readonly pretty: boolean;
}

export class QmpMonitor implements Frontend {
  readonly #daemon: Daemon;
  readonly #settings: QmpMonitorSettings;

  constructor(daemon: Daemon, settings: QmpMonitorSettings) {
    this.#daemon = daemon;
    this.#settings = settings;
  }

  opened(peer: Peer): void {
    new QmpSession(this.#daemon, peer, this.#settings.pretty).start();
  }
}

type Waiting = { readonly value: JsonValue } | { readonly error: BlockError };

class QmpSession {
  readonly #daemon: Daemon;
  readonly #peer: Peer;
  readonly #output: Writable | undefined;
  readonly #pretty: boolean;
  readonly #stream: JsonStream;
  readonly #waiting: Waiting[] = [];
  #running = false;
  #negotiated = false;
  #gone = false;
  #ended = false;
  #stopListening = () => {};

  constructor(daemon: Daemon, peer: Peer, pretty: boolean) {
    this.#daemon = daemon;
    this.#peer = peer;
    this.#output = peer.output;
    this.#pretty = pretty;
    this.#stream = new JsonStream({
      value: (value) => this.#enqueue({ value }),
      error: (error) => this.#enqueue({ error }),
    });
  }

  start(): void {
    this.#stopListening = this.#daemon.events.listen((event) => {
      if (this.#negotiated) this.#send(event);
    });
    const { input } = this.#peer;
    input?.on("data", (bytes: Buffer) => this.#stream.feed(bytes));
    input?.once("end", () => this.#inputEnded());
    input?.once("close", () => {
      if (!this.#ended) this.#left();
    });
    this.#send({ QMP: { version: VERSION_INFO, capabilities: [] } });
    input?.resume();
  }

  /** A socket is gone for both directions; behind the end of a pipe there may be somebody who reads on. */
  #inputEnded(): void {
    this.#ended = this.#running && this.#peer.input !== this.#peer.output;
    if (!this.#ended) this.#left();
  }

  #left(): void {
    this.#gone = true;
    this.#stopListening();
    this.#waiting.length = 0;
  }

  #enqueue(waiting: Waiting): void {
    if (this.#gone) return;
    this.#waiting.push(waiting);
    if (this.#waiting.length >= WAITING_MAX) this.#peer.input?.pause();
    if (!this.#running) void this.#runAll();
  }

  async #runAll(): Promise<void> {
    this.#running = true;
    for (let next = this.#waiting.shift(); next !== undefined; next = this.#waiting.shift()) {
      this.#send(await this.#answer(next));
      if (this.#waiting.length < WAITING_MAX && !this.#gone) this.#peer.input?.resume();
      if (this.#waiting.length > 0) await this.#daemon.clock.turn();
    }
    this.#running = false;
    if (this.#ended) this.#left();
  }

  async #answer(waiting: Waiting): Promise<Record<string, unknown>> {
    const id = "value" in waiting && isJsonObject(waiting.value) ? waiting.value["id"] : undefined;
    const withId = id === undefined ? {} : { id };
    try {
      if ("error" in waiting) throw waiting.error;
      return { return: await this.#run(waiting.value), ...withId };
    } catch (error) {
      const isWorlds = error instanceof BlockError;
      if (!isWorlds) this.#daemon.logger.error(`QMP: ${String((error as Error).stack ?? error)}`);
      const { qmp } = ERROR_CODES[errorCode(error)];
      // What follows the first line is a hint for people at a terminal, as in the reference.
      const [desc] = errorMessage(error).split("\n", 1);
      return { ...withId, error: { class: qmp, desc } };
    }
  }

  async #run(value: JsonValue): Promise<unknown> {
    const request = checkRequest(value);
    if (!this.#negotiated) {
      qmpCapabilities(request);
      this.#negotiated = true;
      return {};
    }
    if (request.execute === "qmp_capabilities") {
      throw new BlockError(
        "COMMAND_NOT_FOUND",
        "Capabilities negotiation is already complete, command ignored",
      );
    }
    return runCommand(this.#daemon, request.execute, request.arguments);
  }

  #send(message: object): void {
    const output = this.#output;
    if (this.#gone || output === undefined || output.destroyed) return;
    output.write(`${writeJson(message, this.#pretty)}\r\n`);
    if (output.writableLength <= UNREAD_BYTES_MAX) return;
    this.#daemon.logger.warn("QMP: a client does not read its events, it is hung up on");
    this.#left();
    this.#peer.close();
  }
}
