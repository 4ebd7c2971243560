import net from "node:net";
import { createInterface } from "node:readline";

type Message = Record<string, unknown>;

/** A client of the control protocol that waits for one thing at a time; what comes in between is dropped. */
export class QmpClient {
  readonly #socket: net.Socket;
  readonly #lines: string[] = [];
  #arrived: (() => void) | undefined;
  #failure: Error | undefined;

  private constructor(socket: net.Socket) {
    this.#socket = socket;
    const lines = createInterface({ input: socket });
    lines.on("line", (line) => {
      this.#lines.push(line);
      this.#arrived?.();
    });
    // The reader of lines passes the socket's errors on.
    lines.on("error", (error) => this.#fail(error));
    socket.on("close", () => this.#fail(new Error("the daemon closed its QMP connection")));
  }

  static async connect(path: string): Promise<QmpClient> {
    const client = new QmpClient(net.connect(path));
    await client.#next((message) => "QMP" in message);
    await client.execute("qmp_capabilities", {});
    return client;
  }

  async execute(command: string, args: Message): Promise<unknown> {
    this.#socket.write(JSON.stringify({ execute: command, arguments: args }) + "\n");
    const reply = await this.#next((message) => "return" in message || "error" in message);
    if ("error" in reply) throw new Error(`${command}: ${JSON.stringify(reply["error"])}`);
    return reply["return"];
  }

  event(name: string): Promise<Message> {
    return this.#next((message) => message["event"] === name);
  }

  close(): void {
    this.#socket.destroy();
  }

  #fail(error: Error): void {
    this.#failure ??= error;
    this.#arrived?.();
  }

  async #next(wanted: (message: Message) => boolean): Promise<Message> {
    for (;;) {
      while (this.#lines.length > 0) {
        const message = JSON.parse(this.#lines.shift()!) as Message;
        if (wanted(message)) return message;
      }
      if (this.#failure !== undefined) throw this.#failure;
      await new Promise<void>((resolve) => {
        this.#arrived = resolve;
      });
    }
  }
}
