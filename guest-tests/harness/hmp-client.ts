// A person at an HMP monitor: types a line, reads until the prompt is there again.

import { createConnection, type Socket } from "node:net";
import { within } from "./patience.ts";

/** Terminal sequences: the monitor may echo what is typed and move the cursor while doing so. */
// biome-ignore lint/suspicious/noControlCharactersInRegex: ESC is what a terminal sequence begins with
const SEQUENCES = /\u001b\[[0-9;?]*[A-Za-z]/g;
const PROMPT = /\((strata|qemu)\) $/;

export class HmpClient {
  readonly #socket: Socket;
  #heard = "";
  #closed = false;
  #wake: (() => void) | undefined;

  private constructor(socket: Socket) {
    this.#socket = socket;
    socket.setEncoding("utf8");
    socket.on("data", (text: string) => {
      this.#heard += text;
      this.#wake?.();
    });
    socket.on("error", () => undefined);
    socket.on("close", () => {
      this.#closed = true;
      this.#wake?.();
    });
  }

  /** Connects to a monitor's unix socket and reads its greeting up to the first prompt. */
  static connect(path: string): Promise<HmpClient> {
    return HmpClient.over(createConnection(path));
  }

  /** The same over a connection that is there already, or on its way. */
  static async over(socket: Socket): Promise<HmpClient> {
    const client = new HmpClient(socket);
    await client.#untilPrompt("(the greeting)");
    return client;
  }

  /** Types a line; gives what the monitor said to it, without echo and prompt. */
  async type(line: string): Promise<string> {
    this.#socket.write(line + "\n");
    const heard = await this.#untilPrompt(line);
    const lines = heard.split(/\r?\n/);
    if (lines[0]!.trim() === line) lines.shift();
    return lines.join("\n").trim();
  }

  /** Types a line that ends the connection. */
  async typeLast(line: string): Promise<void> {
    this.#socket.write(line + "\n");
    await within(
      this.#until(() => this.#closed),
      () => `'${line}' did not end the connection`,
    );
  }

  close(): void {
    this.#socket.destroy();
  }

  async #untilPrompt(line: string): Promise<string> {
    const there = this.#until(() => this.#closed || PROMPT.test(this.#plain()));
    await within(there, () => `no prompt after '${line}', but ${JSON.stringify(this.#heard)}`);
    if (!PROMPT.test(this.#plain())) throw new Error(`the monitor hung up after '${line}': ${this.#heard}`);
    const text = this.#plain().replace(PROMPT, "");
    this.#heard = "";
    return text;
  }

  #plain(): string {
    return this.#heard.replace(SEQUENCES, "");
  }

  #until(holds: () => boolean): Promise<void> {
    return new Promise((resolve) => {
      this.#wake = () => {
        if (!holds()) return;
        this.#wake = undefined;
        resolve();
      };
      this.#wake();
    });
  }
}
