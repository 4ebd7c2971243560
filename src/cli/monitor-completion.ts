// What Tab offers at the monitor. Pure: the line so far and the words that there are.

/** The words that a line may hold, as the monitor's own answers tell them. */
export interface Vocabulary {
  readonly commands: readonly string[];
  readonly topics: readonly string[];
  /** Devices and nodes. */
  readonly images: readonly string[];
}

/**
 * Completions of the last word of `line`, and that word, as readline takes them. A blank follows each, so
 * that the next word can be typed at once.
 */
export function completions(line: string, words: Vocabulary): [string[], string] {
  const [, before, last] = /^(.*?)(\S*)$/s.exec(line) as unknown as [string, string, string];
  const given = before.trim().split(/\s+/);
  const fitting = candidates(given, words).filter((word) => word.startsWith(last));
  return [fitting.map((word) => `${word} `), last];
}

function candidates(given: readonly string[], { commands, topics, images }: Vocabulary): readonly string[] {
  const [command] = given;
  if (command === "") return commands;
  if (command === "help") return given.length === 1 ? commands : [];
  if (command === "info" && given.length === 1) return topics;
  return images;
}

/** Names before the first blank of the lines of `help`, or after `info ` in those of `info`. */
export function namesIn(text: string): string[] {
  return text.split("\n").flatMap((line) => /^(?:info )?([a-z_-]+)( |$)/.exec(line)?.[1] ?? []);
}

/** Names at the heads of `info block` and `info named-block-nodes`; generated ones (#block7) are left out. */
export function imagesIn(text: string): string[] {
  return text.split("\n").flatMap((line) => /^([^\s#:][^\s:]*)(?: \(.*?\))?: /.exec(line)?.[1] ?? []);
}
