// Lets a value through that fits its type, with QAPI's words for what does not.
//
//   1. Two forms: JSON, where every value has its own type, and key=value, where strings stand for every
//      type.
//   2. Members are looked at in the order of the schema; what is left over is an error at the end of each
//      object.
//   3. Names in errors are whole ("actions[0].data.overlay"), except where QAPI gives only the last part.

import { BlockError } from "../../base/errors.ts";
import { parseSize } from "../../base/units.ts";
import { emptyObject, isJsonObject, JsonFloat, type JsonObject, type JsonValue } from "../json-value.ts";
import type {
  AlternateType,
  ArrayType,
  BuiltinType,
  EnumType,
  Infer,
  Member,
  QapiType,
  StructType,
  UnionType,
} from "./types.ts";

/** The value, checked and with strings converted. @throws BlockError EINVAL in QAPI's words */
export function visit<T extends QapiType>(type: T, value: JsonValue, isKeyval = false): Infer<T> {
  return new Visitor(isKeyval).visit(type, value, { full: "", last: "null" }) as Infer<T>;
}

/** Where in the input the visitor stands. */
interface Place {
  readonly full: string;
  /** The last part of the name; "null" for an element of a list, as QAPI has it. */
  readonly last: string;
}

class Visitor {
  readonly #isKeyval: boolean;

  constructor(isKeyval: boolean) {
    this.#isKeyval = isKeyval;
  }

  visit(type: QapiType, value: JsonValue, place: Place): unknown {
    switch (type.kind) {
      case "builtin":
        return this.#isKeyval
          ? this.#fromString(type as BuiltinType<unknown>, value, place)
          : this.#fromJson(type as BuiltinType<unknown>, value, place);
      case "enum":
        return this.#enum(type as EnumType, value, place);
      case "array":
        return this.#array(type as ArrayType, value, place);
      case "struct":
        return this.#object(value, place, (members) => members.all((type as StructType).members));
      case "union":
        return this.#object(value, place, (members) => this.#union(type as UnionType, members));
      case "alternate":
        return this.#alternate(type as AlternateType, value, place);
    }
  }

  #object(value: JsonValue, place: Place, fill: (members: MemberVisit) => void): JsonObject {
    if (!isJsonObject(value)) throw wrongType(place, "object");
    const members = new MemberVisit(this, value, place);
    fill(members);
    return members.finish();
  }

  #union(type: UnionType, members: MemberVisit): void {
    members.all(type.base.members);
    const branch = type.branches[String(members.result[type.discriminator])];
    if (branch !== undefined) members.all(branch.members);
  }

  #array(type: ArrayType, value: JsonValue, place: Place): unknown[] {
    if (!Array.isArray(value)) throw wrongType(place, "array");
    return value.map((element, index) => {
      const full = this.#isKeyval ? `${place.full}.${index}` : `${place.full}[${index}]`;
      return this.visit(type.element, element, { full, last: "null" });
    });
  }

  #enum(type: EnumType, value: JsonValue, place: Place): string {
    const text = this.#isKeyval ? stringOf(value, place) : value;
    if (typeof text !== "string") throw wrongType(place, "string");
    if (!type.values.includes(text)) {
      throw new BlockError("EINVAL", `Parameter '${place.last}' does not accept value '${text}'`);
    }
    return text;
  }

  #alternate(type: AlternateType, value: JsonValue, place: Place): unknown {
    const choice = type.choices.find((one) => jsonKindOf(one) === jsonKind(value));
    if (choice !== undefined) return this.visit(choice, value, place);
    throw new BlockError("EINVAL", `Invalid parameter type for '${place.last}', expected: ${type.name}`);
  }

  #fromJson(type: BuiltinType<unknown>, value: JsonValue, place: Place): unknown {
    switch (type.name) {
      case "str":
        if (typeof value !== "string") throw wrongType(place, "string");
        return value;
      case "bool":
        if (typeof value !== "boolean") throw wrongType(place, "boolean");
        return value;
      case "null":
        if (value !== null) throw wrongType(place, "null");
        return value;
      case "any":
        return value;
      default:
        return integerFromJson(type, value, place);
    }
  }

  #fromString(type: BuiltinType<unknown>, value: JsonValue, place: Place): unknown {
    if (type.name === "any") return value;
    const text = stringOf(value, place);
    switch (type.name) {
      case "str":
        return text;
      case "bool":
        return boolFromString(text, place);
      case "null":
        if (text !== "") throw wrongType(place, "null");
        return null;
      case "size":
        return sizeFromString(text, place);
      default:
        return checkRange(type, integerFromString(text, place), place);
    }
  }
}

/** One object's members: which were taken, and the result. */
class MemberVisit {
  readonly result = emptyObject() as Record<string, unknown>;
  readonly #visitor: Visitor;
  readonly #source: JsonObject;
  readonly #place: Place;
  readonly #left: Set<string>;

  constructor(visitor: Visitor, source: JsonObject, place: Place) {
    this.#visitor = visitor;
    this.#source = source;
    this.#place = place;
    this.#left = new Set(Object.keys(source));
  }

  all(members: readonly Member[]): void {
    for (const { name, optional, type } of members) {
      const full = this.#place.full === "" ? name : `${this.#place.full}.${name}`;
      const value = this.#source[name];
      if (value !== undefined) {
        this.#left.delete(name);
        this.result[name] = this.#visitor.visit(type, value, { full, last: name });
      } else if (!optional) {
        throw new BlockError("EINVAL", `Parameter '${full}' is missing`);
      }
    }
  }

  finish(): JsonObject {
    for (const name of this.#left) {
      const full = this.#place.full === "" ? name : `${this.#place.full}.${name}`;
      throw new BlockError("EINVAL", `Parameter '${full}' is unexpected`);
    }
    return this.result as JsonObject;
  }
}

function wrongType(place: Place, expected: string): BlockError {
  return new BlockError("EINVAL", `Invalid parameter type for '${place.full}', expected: ${expected}`);
}

function expects(place: Place, what: string): BlockError {
  return new BlockError("EINVAL", `Parameter '${place.full}' expects ${what}`);
}

// --- integers ----------------------------------------------------------------------------------------------

const RANGES: Readonly<Record<string, readonly [bigint, bigint]>> = {
  int: [-(2n ** 63n), 2n ** 63n - 1n],
  int32: [-(2n ** 31n), 2n ** 31n - 1n],
  uint32: [0n, 2n ** 32n - 1n],
  uint64: [-(2n ** 63n), 2n ** 64n - 1n],
  size: [-(2n ** 63n), 2n ** 64n - 1n],
};

function integerFromJson(type: BuiltinType<unknown>, value: JsonValue, place: Place): number {
  const isUnsigned64 = type.name === "uint64" || type.name === "size";
  const [low, high] = RANGES[isUnsigned64 ? "uint64" : "int"]!;
  if (value instanceof JsonFloat || (typeof value !== "number" && typeof value !== "bigint")) {
    throw wrongType(place, isUnsigned64 ? "uint64" : "integer");
  }
  if (value < low || value > high) throw wrongType(place, isUnsigned64 ? "uint64" : "integer");
  return checkRange(type, BigInt(value), place);
}

/** Within the type's range; beyond 2**53 as the nearest number, which every check of a size refuses. */
function checkRange(type: BuiltinType<unknown>, value: bigint, place: Place): number {
  const [low, high] = RANGES[type.name]!;
  if (value < low || value > high) throw expects(place, `${type.name}_t`);
  const unsigned = value < 0n && (type.name === "uint64" || type.name === "size");
  return Number(unsigned ? BigInt.asUintN(64, value) : value);
}

/** As strtoll with base 0: decimal, 0x hexadecimal, 0 octal. */
function integerFromString(text: string, place: Place): bigint {
  const match = /^[ \t\n]*([+-]?)(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9]\d*)$/.exec(text);
  if (match === null) throw expects(place, "integer");
  const digits = match[2]!;
  const isOctal = /^0[0-7]+$/.test(digits);
  const value = BigInt(isOctal ? `0o${digits.slice(1)}` : digits);
  const signed = match[1] === "-" ? -value : value;
  if (signed < -(2n ** 63n) || signed >= 2n ** 64n) throw expects(place, "integer");
  return signed;
}

function sizeFromString(text: string, place: Place): number {
  const bytes = parseSize(text);
  if (bytes === undefined) throw expects(place, "size");
  return bytes;
}

// --- strings -----------------------------------------------------------------------------------------------

function stringOf(value: JsonValue, place: Place): string {
  if (typeof value === "string") return value;
  throw new BlockError("EINVAL", `Parameters '${place.full}.*' are unexpected`);
}

const TRUE_WORDS: readonly string[] = ["on", "yes", "true", "y"];
const FALSE_WORDS: readonly string[] = ["off", "no", "false", "n"];

function boolFromString(text: string, place: Place): boolean {
  if (TRUE_WORDS.includes(text)) return true;
  if (FALSE_WORDS.includes(text)) return false;
  throw expects(place, "'on' or 'off'");
}

// --- alternates --------------------------------------------------------------------------------------------

function jsonKind(value: JsonValue): string {
  if (value === null) return "null";
  if (Array.isArray(value)) return "array";
  if (value instanceof JsonFloat || typeof value === "bigint") return "number";
  return typeof value;
}

function jsonKindOf(type: QapiType): string {
  if (type.kind === "enum") return "string";
  if (type.kind === "array") return "array";
  if (type.kind !== "builtin") return "object";
  const kinds: Record<string, string> = { str: "string", bool: "boolean", null: "null" };
  return kinds[type.name] ?? "number";
}
