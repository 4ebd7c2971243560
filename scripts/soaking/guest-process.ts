// The guests' process as seen by whoever drives the run: calls, answers, and word of what is wrong.

import { type ChildProcess, fork } from "node:child_process";
import { fileURLToPath } from "node:url";

const WORKER = fileURLToPath(new URL("./guest-worker.js", import.meta.url));

/** What can be asked of the guest of a disk; see the methods of Guest. */
export type GuestCall = { readonly disk: string } & (
  | { readonly do: "make"; readonly mebibytesMax: number; readonly seed: number }
  | { readonly do: "connect"; readonly uri: string }
  | { readonly do: "fill" | "work" | "rest" | "disconnect" | "expectLoss" | "takeFigures" | "checkDisk" }
  | { readonly do: "allowErrors" | "afterWrites"; readonly count: number }
  | { readonly do: "lost"; readonly how: "asked" | "killed" }
  | { readonly do: "checkFile"; readonly filename: string }
);

export type GuestAnswer =
  | { readonly id: number; readonly result: unknown }
  | { readonly id: number; readonly error: string }
  | { readonly wrong: string };

interface Waiting {
  readonly resolve: (result: unknown) => void;
  readonly reject: (error: Error) => void;
}

export class GuestProcess {
  readonly #child: ChildProcess;
  readonly #waiting = new Map<number, Waiting>();
  readonly #onWrong: (what: string) => void;
  #nextId = 1;
  #closing = false;

  /** `onWrong` hears of a wrong byte, of an error that nobody had announced, and of the guests' own end. */
  constructor(onWrong: (what: string) => void) {
    this.#onWrong = onWrong;
    this.#child = fork(WORKER, { stdio: ["ignore", "inherit", "inherit", "ipc"] });
    this.#child.on("message", (answer: GuestAnswer) => this.#heard(answer));
    // A message that cannot be sent: then the process has ended, which is told below.
    this.#child.on("error", () => undefined);
    this.#child.once("exit", (code, signal) =>
      this.#ended(`the guests' process ended with ${code ?? signal}`),
    );
  }

  /** @throws what the guest says against it */
  call(call: GuestCall): Promise<unknown> {
    return new Promise((resolve, reject) => {
      const id = this.#nextId++;
      this.#waiting.set(id, { resolve, reject });
      this.#child.send({ id, call });
    });
  }

  close(): void {
    this.#closing = true;
    this.#child.kill("SIGKILL");
  }

  #heard(answer: GuestAnswer): void {
    if ("wrong" in answer) {
      this.#onWrong(answer.wrong);
      return;
    }
    const waiting = this.#waiting.get(answer.id);
    this.#waiting.delete(answer.id);
    if ("error" in answer) waiting?.reject(new Error(answer.error));
    else waiting?.resolve(answer.result);
  }

  #ended(how: string): void {
    if (this.#closing) return;
    this.#onWrong(how);
    for (const { reject } of this.#waiting.values()) reject(new Error(how));
    this.#waiting.clear();
  }
}
