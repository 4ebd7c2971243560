// A connection to a daemon's monitor for people: a line goes out, text comes back up to the next prompt.

import { createConnection, type Socket } from "node:net";
import { BlockError } from "../base/errors.ts";

export const PROMPT = "(strata) ";

export class HmpConnection {
  readonly #socket: Socket;
  #heard = "";
  #gone = false;
  #wake: (() => void) | undefined;

  private constructor(socket: Socket) {
    this.#socket = socket;
    socket.setEncoding("utf8");
    socket.on("data", (text: string) => {
      this.#heard += text;
      this.#wake?.();
    });
    // The end says it all: what the daemon said before it is still given out.
    socket.on("error", () => undefined);
    socket.on("close", () => {
      this.#gone = true;
      this.#wake?.();
    });
  }

  /** Connects; the result holds the greeting. @throws BlockError when nobody listens at `path` */
  static async connect(path: string): Promise<{ connection: HmpConnection; greeting: string }> {
    const socket = createConnection(path);
    await new Promise<void>((resolve, reject) => {
      socket.once("connect", resolve);
      socket.once("error", (error) =>
        reject(new BlockError("ENOENT", `no monitor listens at '${path}': ${error.message}`, error)),
      );
    });
    const connection = new HmpConnection(socket);
    return { connection, greeting: await connection.#untilPrompt() };
  }

  /** Whether the daemon has hung up. */
  get isGone(): boolean {
    return this.#gone;
  }

  /**
   * Runs one line and gives what it says, without the prompt; "" when the daemon hangs up instead (`quit`).
   */
  async run(line: string): Promise<string> {
    if (this.#gone) return "";
    this.#socket.write(line + "\n");
    return this.#untilPrompt();
  }

  close(): void {
    this.#socket.destroy();
  }

  async #untilPrompt(): Promise<string> {
    while (!this.#heard.endsWith(PROMPT) && !this.#gone) {
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
    const text = this.#heard.endsWith(PROMPT) ? this.#heard.slice(0, -PROMPT.length) : this.#heard;
    this.#heard = "";
    return text;
  }
}
