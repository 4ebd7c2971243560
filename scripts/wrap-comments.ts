// Breaks comment lines that are too long: the formatter does not touch comments.

const LINE_LENGTH_MAX = 110;

/** The text with the words behind the limit moved to the next line of their paragraph. Code is left alone. */
export function wrapComments(text: string): string {
  const lines = text.split("\n");
  for (let at = 0; at < lines.length; at++) {
    if (lines[at]!.length > LINE_LENGTH_MAX) wrapLine(lines, at);
  }
  return lines.join("\n");
}

function wrapLine(lines: string[], at: number): void {
  const line = lines[at]!;
  const single = /^(\s*)\/\*\* (.*) \*\/$/.exec(line);
  if (single !== null) {
    const [, indent, words] = single;
    lines.splice(at, 1, `${indent}/**`, `${indent} * ${words}`, `${indent} */`);
    return;
  }
  const comment = /^(\s*(?:\/\/|\*))(\s+(?:\d+\. |- )?)/.exec(line);
  if (comment === null) return;
  const prefix = comment[1]! + " ".repeat(comment[2]!.length);
  const cut = line.lastIndexOf(" ", LINE_LENGTH_MAX);
  if (cut <= prefix.length) return;
  const rest = line.slice(cut + 1);
  lines[at] = line.slice(0, cut).trimEnd();
  if (continuesParagraph(lines[at + 1], prefix)) {
    lines[at + 1] = `${prefix}${rest} ${lines[at + 1]!.slice(prefix.length)}`;
  } else {
    lines.splice(at + 1, 0, prefix + rest);
  }
}

/**
 * Whether a line goes on with the paragraph whose lines begin with `prefix`: no item of a list and no tag.
 */
function continuesParagraph(line: string | undefined, prefix: string): boolean {
  if (line === undefined || !line.startsWith(prefix)) return false;
  const words = line.slice(prefix.length);
  return /^\S/.test(words) && !/^(\d+\. |- |@|\*\/)/.test(words);
}
