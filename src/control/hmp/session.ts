// One person, or script, at the human monitor: bytes in, text and prompts out.
//
//   1. Lines run one after the other; a prompt follows when a line is done.
//   2. A line is bounded; what is longer is refused, and its rest is skipped.
//   3. Who feeds it reads no further bytes before `idle`, so that a flood of lines waits in the socket, not
//      in here.
//   4. The next line is carried out when the text of the one before was taken: who does not read is answered
//      nothing more, and costs no memory.
//   5. No error leaves here: it is shown, and the next line is read.

import { StringDecoder } from "node:string_decoder";
import type { Completion } from "../../base/completion.ts";
import { errorMessage } from "../../base/errors.ts";
import { runHmpLine } from "./commands.ts";
import type { HmpTarget } from "./target.ts";

export const HMP_PROMPT = "(strata) ";

const LINE_CHARACTERS_MAX = 64 * 1024;

export class HmpSession {
  readonly #target: HmpTarget;
  readonly #write: (text: string) => Completion;
  readonly #decoder = new StringDecoder("utf8");
  #partial = "";
  #skipping = false;
  #running: Promise<void> = Promise.resolve();

  constructor(target: HmpTarget, write: (text: string) => Completion) {
    this.#target = target;
    this.#write = write;
    write(`Strata monitor - type 'help' for more information\n${HMP_PROMPT}`);
  }

  /** Done when all lines received so far have been carried out. */
  get idle(): Promise<void> {
    return this.#running;
  }

  received(bytes: Buffer): void {
    const parts = (this.#partial + this.#decoder.write(bytes)).split("\n");
    this.#partial = parts.pop()!;
    for (const line of parts) this.#line(line.replace(/\r$/, ""));
    if (this.#partial.length <= LINE_CHARACTERS_MAX) return;
    this.#partial = "";
    if (!this.#skipping) this.#show(`Error: a line has at most ${LINE_CHARACTERS_MAX} characters\n`);
    this.#skipping = true;
  }

  #line(line: string): void {
    if (this.#skipping) {
      this.#skipping = false;
      this.#show(HMP_PROMPT);
      return;
    }
    this.#running = this.#running.then(() => this.#run(line));
  }

  async #run(line: string): Promise<void> {
    let shown: string;
    try {
      shown = await runHmpLine(this.#target, line);
    } catch (error) {
      shown = `Error: ${errorMessage(error)}\n`;
    }
    await this.#write(shown + HMP_PROMPT);
  }

  /** In order with the lines before. */
  #show(message: string): void {
    this.#running = this.#running.then(() => this.#write(message));
  }
}
