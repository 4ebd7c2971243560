// Values for the arguments of commands, from the schema: such as fit, and such as do not.

import type { Prng } from "../../base/prng.ts";
import type {
  AlternateType,
  ArrayType,
  EnumType,
  Member,
  QapiType,
  StructType,
  UnionType,
} from "../qapi/types.ts";

/** Words for arguments that are text: names of what is there, and odd ones. */
export type Words = readonly string[];

/** Integers as they stand in JSON: some do not fit a number. */
export type Sample = null | boolean | number | bigint | string | Sample[] | { [member: string]: Sample };

const INTEGERS = [0, 1, -1, 2, 7, 511, 512, 4096, 65_536, 2 ** 20, 2 ** 31, 2 ** 32, 2 ** 53 - 1];
const ENDS = [2n ** 53n, 2n ** 63n - 1n, 2n ** 63n, -(2n ** 63n), 2n ** 64n - 1n];
/** Options in options in options end somewhere. */
const DEPTH_MAX = 6;

/** A value that fits the type. */
export function sampleOf(type: QapiType, prng: Prng, words: Words, depth = 0): Sample {
  switch (type.kind) {
    case "enum":
      return prng.pick((type as EnumType).values);
    case "array": {
      const { element } = type as ArrayType;
      const count = depth < DEPTH_MAX ? prng.below(3) : 0;
      return Array.from({ length: count }, () => sampleOf(element, prng, words, depth + 1));
    }
    case "struct":
      return membersOf((type as StructType).members, prng, words, depth);
    case "union":
      return unionOf(type as UnionType, prng, words, depth);
    case "alternate": {
      const { choices } = type as AlternateType;
      return sampleOf(depth < DEPTH_MAX ? prng.pick(choices) : choices.at(-1)!, prng, words, depth + 1);
    }
    default:
      return builtinOf(type.name, prng, words);
  }
}

function builtinOf(name: string, prng: Prng, words: Words): Sample {
  switch (name) {
    case "str":
      return prng.pick(words);
    case "bool":
      return prng.chance(0.5);
    case "null":
      return null;
    case "any":
      return prng.pick<Sample>([null, true, 7, "x", [], {}]);
    default:
      return prng.chance(0.9) ? prng.pick(INTEGERS) : prng.pick(ENDS);
  }
}

function membersOf(members: readonly Member[], prng: Prng, words: Words, depth: number) {
  const value: { [member: string]: Sample } = {};
  for (const { name, optional, type } of members) {
    if (optional && !prng.chance(0.3)) continue;
    value[name] = sampleOf(type, prng, words, depth + 1);
  }
  return value;
}

function unionOf(type: UnionType, prng: Prng, words: Words, depth: number): Sample {
  const value = membersOf(type.base.members, prng, words, depth);
  const branch = type.branches[String(value[type.discriminator])];
  return branch === undefined ? value : { ...value, ...membersOf(branch.members, prng, words, depth) };
}

/** One of every kind of JSON value, and some that are hard to hold. */
export const ODD_VALUES: readonly Sample[] = [
  null,
  true,
  0,
  -1,
  2n ** 64n,
  "",
  "odd",
  "\0",
  [],
  [[[[]]]],
  {},
  { "": "" },
  { __proto__x: 1 },
  ["a", 1, null],
];

/** All values that differ from `value` in one member, at whatever depth, or lack it. */
export function* withOneOdd(value: Sample): Generator<Sample> {
  yield* ODD_VALUES;
  if (typeof value !== "object" || value === null) return;
  if (Array.isArray(value)) {
    for (const [index, element] of value.entries()) {
      for (const odd of withOneOdd(element)) yield value.with(index, odd);
    }
    return;
  }
  for (const [name, member] of Object.entries(value)) {
    const { [name]: _, ...rest } = value;
    yield rest;
    for (const odd of withOneOdd(member)) yield { ...value, [name]: odd };
  }
  yield { ...value, "no-such-member": 1 };
}

/** As JSON; what is no JSON number is written as digits. */
export function sampleText(value: Sample): string {
  if (typeof value === "bigint") return String(value);
  if (typeof value !== "object" || value === null) return JSON.stringify(value);
  if (Array.isArray(value)) return `[${value.map(sampleText).join(",")}]`;
  const members = Object.entries(value).map(([name, held]) => `${JSON.stringify(name)}:${sampleText(held)}`);
  return `{${members.join(",")}}`;
}
