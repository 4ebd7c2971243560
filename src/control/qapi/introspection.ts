// What query-qmp-schema returns: every command and event, and the types that they use, in QAPI's
// introspection form. As there, types of the schema have meaningless names (numbers), so that clients look at
// members and not at names.

import type { EventType } from "./events.ts";
import type { AlternateType, ArrayType, EnumType, Member, QapiType, StructType, UnionType } from "./types.ts";
import { empty } from "./types.ts";

/** A command as the schema sees it. */
export interface CommandShape {
  readonly name: string;
  readonly data: QapiType;
  readonly returns: QapiType;
}

type Entry = Record<string, unknown>;

const JSON_TYPES: Readonly<Record<string, string>> = {
  str: "string",
  int: "int",
  bool: "boolean",
  null: "null",
  any: "value",
};

/** The list of SchemaInfo. Arguments of the commands come in the order of QAPI's members. */
export function introspect(commands: readonly CommandShape[], events: readonly EventType[]): Entry[] {
  const types = new TypeNames();
  const entries: Entry[] = [];
  for (const { name, data, returns } of commands) {
    entries.push({
      name,
      "meta-type": "command",
      "arg-type": types.nameOf(data),
      "ret-type": types.nameOf(returns),
    });
  }
  for (const { name, data } of events) {
    entries.push({ name, "meta-type": "event", "arg-type": types.nameOf(data) });
  }
  return [...entries, ...types.describeAll()];
}

class TypeNames {
  readonly #names = new Map<QapiType, string>();
  readonly #described: Entry[] = [];
  #waiting: QapiType[] = [];
  #count = 0;

  nameOf(type: QapiType): string {
    if (type.kind === "array") return this.#arrayName(type as ArrayType);
    const key = type.kind === "struct" && (type as StructType).members.length === 0 ? empty : type;
    const known = this.#names.get(key);
    if (known !== undefined) return known;
    const name = key.kind === "builtin" ? builtinName(key.name) : String(this.#count++);
    this.#names.set(key, name);
    this.#waiting.push(key);
    return name;
  }

  describeAll(): Entry[] {
    while (this.#waiting.length > 0) {
      const types = this.#waiting;
      this.#waiting = [];
      for (const type of types) this.#described.push(this.#describe(type));
    }
    // Widths of integers have one name.
    return this.#described.filter(
      (entry, index, all) => all.findIndex((other) => other["name"] === entry["name"]) === index,
    );
  }

  #arrayName(type: ArrayType): string {
    const element = this.nameOf(type.element);
    const name = `[${element}]`;
    if (!this.#described.some((entry) => entry["name"] === name)) {
      this.#described.push({ name, "meta-type": "array", "element-type": element });
    }
    return name;
  }

  #describe(type: QapiType): Entry {
    const name = this.nameOf(type);
    switch (type.kind) {
      case "enum": {
        const { values } = type as EnumType;
        return { name, "meta-type": "enum", members: values.map((value) => ({ name: value })), values };
      }
      case "struct":
        return { name, "meta-type": "object", members: this.#members((type as StructType).members) };
      case "union":
        return { name, "meta-type": "object", ...this.#union(type as UnionType) };
      case "alternate": {
        const members = (type as AlternateType).choices.map((choice) => ({ type: this.nameOf(choice) }));
        return { name, "meta-type": "alternate", members };
      }
      default:
        return { name, "meta-type": "builtin", "json-type": JSON_TYPES[name]! };
    }
  }

  #union({ base, discriminator, branches }: UnionType): Entry {
    const tag = base.members.find(({ name }) => name === discriminator)!.type as EnumType;
    return {
      members: this.#members(base.members),
      tag: discriminator,
      variants: tag.values.map((value) => ({ case: value, type: this.nameOf(branches[value] ?? empty) })),
    };
  }

  #members(members: readonly Member[]): Entry[] {
    return members.map(({ name, optional, type }) => ({
      name,
      ...(optional ? { default: null } : {}),
      type: this.nameOf(type),
    }));
  }
}

function builtinName(name: string): string {
  const isInteger = ["uint64", "int32", "uint32", "size"].includes(name);
  return isInteger ? "int" : name;
}
