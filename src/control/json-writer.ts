import { JsonFloat } from "./json-value.ts";

const INDENT = "    ";

/**
 * Writes a value as QEMU does: ASCII only, a blank after commas and colons; `pretty` over several lines.
 * Members that are undefined are left out; integers may be numbers or bigints.
 */
export function writeJson(value: unknown, pretty = false): string {
  return written(value, pretty ? "\n" : undefined);
}

/** `line` is what begins a new line, with the indentation so far; undefined: all on one line. */
function written(value: unknown, line: string | undefined): string {
  switch (typeof value) {
    case "string":
      return quoted(value);
    case "boolean":
    case "number":
    case "bigint":
      return String(value);
    case "object":
      break;
    default:
      throw new TypeError(`${typeof value} has no JSON form`);
  }
  if (value === null) return "null";
  if (value instanceof JsonFloat) return value.text;
  const inner = line === undefined ? undefined : line + INDENT;
  if (Array.isArray(value)) {
    return bracketed(
      "[",
      value.map((element) => written(element, inner)),
      "]",
      line,
    );
  }
  const members = Object.entries(value).filter(([, held]) => held !== undefined);
  return bracketed(
    "{",
    members.map(([name, held]) => `${quoted(name)}: ${written(held, inner)}`),
    "}",
    line,
  );
}

function bracketed(open: string, parts: readonly string[], close: string, line: string | undefined): string {
  if (line === undefined) return open + parts.join(", ") + close;
  const inner = line + INDENT;
  return parts.length === 0 ? open + line + close : open + inner + parts.join("," + inner) + line + close;
}

const SHORT: Readonly<Record<string, string>> = {
  '"': '\\"',
  "\\": "\\\\",
  "\b": "\\b",
  "\f": "\\f",
  "\n": "\\n",
  "\r": "\\r",
  "\t": "\\t",
};

function quoted(text: string): string {
  // Everything but printable ASCII goes as UTF-16 units, which is what JSON's \u counts in.
  const body = text.replace(/["\\]|[^\x20-\x7e]/g, (unit) => SHORT[unit] ?? unicodeEscapes(unit));
  return `"${body}"`;
}

function unicodeEscapes(character: string): string {
  const hex = character.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0");
  return `\\u${hex}`;
}
