import { BlockError } from "../../base/errors.ts";

/**
 * Splits a line into words at blanks. A word in double quotes may hold blanks and the escapes \n \r \t \\ \"
 * \'.
 * @throws BlockError EINVAL at a quote that does not end
 */
export function splitLine(line: string): string[] {
  const words: string[] = [];
  let at = 0;
  for (;;) {
    while (at < line.length && /\s/.test(line[at]!)) at++;
    if (at >= line.length) return words;
    if (line[at] !== '"') {
      const from = at;
      while (at < line.length && !/\s/.test(line[at]!)) at++;
      words.push(line.slice(from, at));
      continue;
    }
    const [word, next] = quoted(line, at + 1);
    words.push(word);
    at = next;
  }
}

const ESCAPES: Readonly<Record<string, string>> = {
  n: "\n",
  r: "\r",
  t: "\t",
  "\\": "\\",
  '"': '"',
  "'": "'",
};

function quoted(line: string, from: number): [string, number] {
  let word = "";
  for (let at = from; at < line.length; at++) {
    const letter = line[at]!;
    if (letter === '"') return [word, at + 1];
    if (letter !== "\\") {
      word += letter;
      continue;
    }
    const escaped = ESCAPES[line[++at] ?? ""];
    if (escaped === undefined) {
      throw new BlockError("EINVAL", `unsupported escape code: '\\${line[at] ?? ""}'`);
    }
    word += escaped;
  }
  throw new BlockError("EINVAL", "unterminated string: a quote has no end");
}
