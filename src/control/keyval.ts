// Options as people write them: "driver=qcow2,file.driver=file,file.filename=a,,b.img", or JSON.
//
//   name=value,name=value   a comma in a value is written twice
//   a.b=x                   member b of a;   a.0=x,a.1=y   a list
//   x,name=value            the first name may be left out where the option has one that is implied
//
// All values are strings; the visitor turns them into what the schema wants. Words of errors are QEMU's.

import { BlockError } from "../base/errors.ts";
import { parseJson } from "./json-stream.ts";
import { emptyObject, isJsonObject, type JsonObject, type JsonValue } from "./json-value.ts";

/** Longest part of a name between dots. */
const NAME_PART_BYTES_MAX = 127;

/** What an option says, and whether its values are all strings. */
export interface OptionText {
  readonly value: JsonObject;
  /** Strings stand for every type: the visitor converts them. */
  readonly isKeyval: boolean;
}

/** Reads an option in either form. @throws BlockError EINVAL in QEMU's words */
export function parseOption(text: string, impliedName?: string): OptionText {
  if (!text.startsWith("{")) {
    const { value, help } = parseKeyval(text, impliedName);
    if (help) throw new BlockError("EINVAL", "Help is not available for this option");
    return { value, isKeyval: true };
  }
  const value = parseJson(text);
  if (!isJsonObject(value)) throw new BlockError("EINVAL", "expected a JSON object");
  return { value, isKeyval: false };
}

/** `help` says that "help" or "?" stood among the options. */
export function parseKeyval(text: string, impliedName?: string): { value: JsonObject; help: boolean } {
  const root = emptyObject();
  let help = false;
  let rest = text;
  let implied = impliedName;
  while (rest !== "") {
    const parameter = takeParameter(rest, implied);
    if (parameter.name === undefined) help = true;
    else put(root, parameter.name, parameter.value);
    rest = parameter.rest;
    implied = undefined;
  }
  return { value: listified(root, "") as JsonObject, help };
}

interface Parameter {
  /** Undefined: a call for help. */
  readonly name: string | undefined;
  readonly value: string;
  readonly rest: string;
}

function takeParameter(text: string, implied: string | undefined): Parameter {
  const end = text.search(/[=,]/);
  const word = end < 0 ? text : text.slice(0, end);
  const rest = end < 0 ? "" : text.slice(end + 1);
  if (end >= 0 && text[end] === "=") {
    checkName(word);
    const value = takeValue(rest);
    return { name: word, ...value };
  }
  if (word === "help" || word === "?") return { name: undefined, value: "", rest };
  if (word !== "" && implied !== undefined) return { name: implied, value: word, rest };
  checkName(word);
  throw new BlockError("EINVAL", `Expected '=' after parameter '${word}'`);
}

/** The value up to a single comma, with double ones made single. */
function takeValue(text: string): { value: string; rest: string } {
  let value = "";
  for (let at = 0; ; ) {
    const comma = text.indexOf(",", at);
    if (comma < 0) return { value: value + text.slice(at), rest: "" };
    value += text.slice(at, comma);
    if (text[comma + 1] !== ",") return { value, rest: text.slice(comma + 1) };
    value += ",";
    at = comma + 2;
  }
}

const NAME_PART = /^(?:__[A-Za-z0-9.-]+_)?[A-Za-z][A-Za-z0-9_-]*$/;

function checkName(name: string): void {
  name.split(".").forEach((part, position) => {
    const isIndex = position > 0 && /^\d+$/.test(part);
    if (!isIndex && !NAME_PART.test(part)) throw new BlockError("EINVAL", `Invalid parameter '${name}'`);
    if (part.length > NAME_PART_BYTES_MAX) {
      const fragment = name === part ? "" : " fragment";
      throw new BlockError("EINVAL", `Parameter${fragment} '${part}' is too long`);
    }
  });
}

function put(root: JsonObject, name: string, value: string): void {
  const parts = name.split(".");
  let at = root;
  for (let depth = 0; depth < parts.length - 1; depth++) {
    at[parts[depth]!] ??= emptyObject();
    const next = at[parts[depth]!];
    if (!isJsonObject(next)) throw inconsistent(parts.slice(0, depth + 1).join(".") + ".*");
    at = next;
  }
  const last = parts[parts.length - 1]!;
  if (isJsonObject(at[last])) throw inconsistent(`${name}.*`);
  at[last] = value;
}

function inconsistent(names: string): BlockError {
  return new BlockError("EINVAL", `Parameters '${names}' used inconsistently`);
}

/**
 * Makes lists of the objects whose members are all numbers. `prefix` is the name of `value`, with its dot.
 */
function listified(value: JsonObject, prefix: string): JsonValue {
  const names = Object.keys(value);
  for (const name of names) {
    const held = value[name]!;
    if (isJsonObject(held)) value[name] = listified(held, `${prefix}${name}.`);
  }
  const indices = names.filter((name) => /^\d+$/.test(name));
  if (indices.length === 0) return value;
  if (indices.length < names.length) throw inconsistent(`${prefix}*`);
  const byIndex = new Map(indices.map((name) => [Number(name), value[name]!]));
  const list: JsonValue[] = [];
  for (let index = 0; index < byIndex.size; index++) {
    const element = byIndex.get(index);
    if (element === undefined) throw new BlockError("EINVAL", `Parameter '${prefix}${index}' missing`);
    list.push(element);
  }
  return list;
}
