// Rules of a `blkdebug` node in a file, in the form of QEMU's configuration files:
//
//   # a comment
//   [inject-error]
//   event = "l2_update"
//   errno = "28"
//   [set-state]
//   event = "l2_update"
//   new_state = "2"
//
// Every value stands in double quotes. Words of errors are QEMU's where it has any.

import { BlockError } from "../base/errors.ts";

type Values = Record<string, string | number | boolean>;

/** Rules as the options of the node name them; not checked beyond their types. */
export interface ConfiguredRules {
  readonly "inject-error": readonly Values[];
  readonly "set-state": readonly Values[];
}

type ValueType = "string" | "number" | "boolean";

const GROUPS: Readonly<Record<keyof ConfiguredRules, Readonly<Record<string, ValueType>>>> = {
  "inject-error": {
    event: "string",
    state: "number",
    iotype: "string",
    errno: "number",
    sector: "number",
    once: "boolean",
    immediately: "boolean",
  },
  "set-state": { event: "string", state: "number", new_state: "number" },
};

/** @throws BlockError EINVAL with the line */
export function parseBlkdebugConfig(text: string): ConfiguredRules {
  const rules = { "inject-error": [] as Values[], "set-state": [] as Values[] };
  let group: keyof ConfiguredRules | undefined;
  for (const [index, line] of text.split("\n").entries()) {
    const wrong = (message: string) => new BlockError("EINVAL", `line ${index + 1}: ${message}`);
    if (/^\s*(#.*)?$/.test(line)) continue;
    const header = /^\[\s*([^\]\s"]+)(?:\s+"[^"]*")?\s*\]\s*$/.exec(line);
    if (header !== null) {
      group = groupOf(header[1]!, wrong);
      rules[group].push({});
      continue;
    }
    const value = /^\s*(\S+)\s*=\s*"([^"]*)"\s*$/.exec(line);
    if (value === null) throw wrong('parse error: neither [group] nor name = "value"');
    if (group === undefined) throw wrong("no group defined");
    const type = Object.hasOwn(GROUPS[group], value[1]!) ? GROUPS[group][value[1]!] : undefined;
    if (type === undefined) throw wrong(`Invalid parameter '${value[1]}'`);
    rules[group].at(-1)![value[1]!] = parsed(type, value[1]!, value[2]!, wrong);
  }
  return rules;
}

function groupOf(name: string, wrong: (message: string) => BlockError): keyof ConfiguredRules {
  if (Object.hasOwn(GROUPS, name)) return name as keyof ConfiguredRules;
  throw wrong(`There is no option group '${name}'`);
}

function parsed(type: ValueType, name: string, text: string, wrong: (message: string) => BlockError) {
  if (type === "string") return text;
  if (type === "number") {
    if (/^-?(\d+|0[xX][0-9a-fA-F]+)$/.test(text))
      return text.startsWith("-") ? -Number(text.slice(1)) : Number(text);
    throw wrong(`Parameter '${name}' expects a number`);
  }
  if (["on", "yes", "true", "y"].includes(text)) return true;
  if (["off", "no", "false", "n"].includes(text)) return false;
  throw wrong(`Parameter '${name}' expects 'on' or 'off'`);
}
