// Where a command writes to and how: the real terminal, or one that a test reads.

/** What a command sees of the place that it runs in. */
export interface Terminal {
  /** Results. */
  out(text: string): void;
  /** Messages and errors. */
  err(text: string): void;
  /** Whether results go to a person's terminal, which shows progress in place. */
  readonly interactive: boolean;
  /** Width of that terminal in characters; large where there is none. */
  readonly columns: number;
}

/** A file or a pipe has room for everything. */
const COLUMNS_WHERE_UNKNOWN = 1000;

export const realTerminal: Terminal = {
  out: (text) => void process.stdout.write(text),
  err: (text) => void process.stderr.write(text),
  get interactive() {
    return process.stdout.isTTY === true && process.env["TERM"] !== "dumb";
  },
  get columns() {
    // 0 is what a terminal without a size tells.
    return process.stdout.columns || COLUMNS_WHERE_UNKNOWN;
  },
};

/**
 * Shows a line that is written over again and again, or single lines where nobody watches. Texts that are not
 * the live line go through `above`, so that they do not end up inside of it.
 */
export class LiveLine {
  readonly #terminal: Terminal;
  #shown = "";

  constructor(terminal: Terminal) {
    this.#terminal = terminal;
  }

  show(line: string): void {
    if (!this.#terminal.interactive) {
      this.#terminal.out(line + "\n");
      return;
    }
    // Erasing to the right after the text, not before it, keeps the line from flickering.
    this.#terminal.out(`\r${line}\x1b[K`);
    this.#shown = line;
  }

  /** Writes whole lines; the live line goes on below them. */
  above(text: string): void {
    if (this.#shown !== "") this.#terminal.out("\r\x1b[K");
    this.#terminal.out(text);
    if (this.#shown !== "") this.#terminal.out(this.#shown);
  }

  /** Leaves the line as it stands and goes on below it. */
  end(): void {
    if (this.#shown !== "") this.#terminal.out("\n");
    this.#shown = "";
  }
}
