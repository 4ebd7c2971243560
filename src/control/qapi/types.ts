// The schema language: QAPI's kinds of types, as values that carry the TypeScript type of what they describe.
//
//   struct("BlockdevOptionsFile", "A file of the host.", { filename: str, "?aio": aioEnum })   "?" marks
//   optional union("BlockdevOptions", "...", base, "driver", { file: fileOptions, raw: rawOptions })
//   alternate("BlockdevRef", "...", { definition: options, reference: str })
//
// `Infer<typeof type>` is the type of a value that the visitor has let through.

/** A type of the schema. `V` is the type of its values; it exists for the compiler alone. */
export interface QapiType<V = unknown> {
  readonly kind: Kind;
  readonly name: string;
  readonly __value?: V;
}

export type Kind = "builtin" | "enum" | "array" | "struct" | "union" | "alternate";

export type Infer<T> = T extends QapiType<infer V> ? V : never;

export type BuiltinName = "str" | "int" | "uint64" | "int32" | "uint32" | "size" | "bool" | "null" | "any";

export interface BuiltinType<V> extends QapiType<V> {
  readonly kind: "builtin";
  readonly name: BuiltinName;
}

function builtin<V>(name: BuiltinName): BuiltinType<V> {
  return { kind: "builtin", name };
}

export const str = builtin<string>("str");
/** 64-bit signed; as a number where that is exact. Others are refused where they mean bytes. */
export const int = builtin<number>("int");
export const uint64 = builtin<number>("uint64");
export const int32 = builtin<number>("int32");
export const uint32 = builtin<number>("uint32");
/** Bytes; in key=value also with a suffix: 1M. */
export const size = builtin<number>("size");
export const bool = builtin<boolean>("bool");
export const nil = builtin<null>("null");
export const any = builtin<unknown>("any");

export interface EnumType<V extends string = string> extends QapiType<V> {
  readonly kind: "enum";
  readonly values: readonly V[];
}

export function enumeration<const V extends string>(name: string, values: readonly V[]): EnumType<V> {
  return { kind: "enum", name, values };
}

export interface ArrayType<V = unknown> extends QapiType<V[]> {
  readonly kind: "array";
  readonly element: QapiType<V>;
}

export function array<V>(element: QapiType<V>): ArrayType<V> {
  return { kind: "array", name: `[${element.name}]`, element };
}

/**
 * Members by name; an optional one has "?" before its name. A function stands for a type that is defined
 * later.
 */
export type Members = Readonly<Record<string, QapiType | (() => QapiType)>>;

type MemberValue<T> = T extends () => infer R ? Infer<R> : Infer<T>;
type Required<M> = { [K in keyof M as K extends `?${string}` ? never : K]: MemberValue<M[K]> };
type Optional<M> = { [K in keyof M as K extends `?${infer N}` ? N : never]?: MemberValue<M[K]> };
export type StructOf<M> = Readonly<Required<M> & Optional<M>>;

export interface Member {
  readonly name: string;
  readonly optional: boolean;
  readonly type: QapiType;
}

export interface StructType<V = unknown> extends QapiType<V> {
  readonly kind: "struct";
  readonly doc: string;
  readonly members: readonly Member[];
}

export function struct<const M extends Members>(
  name: string,
  doc: string,
  members: M,
): StructType<StructOf<M>> {
  return {
    kind: "struct",
    name,
    doc,
    get members() {
      return memberList(members);
    },
  };
}

function memberList(members: Members): Member[] {
  return Object.entries(members).map(([key, type]) => ({
    name: key.startsWith("?") ? key.slice(1) : key,
    optional: key.startsWith("?"),
    type: typeof type === "function" ? type() : type,
  }));
}

export const empty = struct("Empty", "Nothing.", {});

export interface UnionType<V = unknown> extends QapiType<V> {
  readonly kind: "union";
  readonly doc: string;
  readonly base: StructType;
  readonly discriminator: string;
  /** A value of the discriminator that has no branch adds no members. */
  readonly branches: Readonly<Record<string, StructType>>;
}

type Branch<B, D extends string, K, S> = Readonly<Omit<B, D>> & { readonly [P in D]: K } & Infer<S>;

export function union<B, const D extends string, const S extends Readonly<Record<string, StructType>>>(
  name: string,
  doc: string,
  base: StructType<B>,
  discriminator: D,
  branches: S,
): UnionType<{ [K in keyof S]: Branch<B, D, K, S[K]> }[keyof S]> {
  return { kind: "union", name, doc, base: base as StructType, discriminator, branches };
}

export interface AlternateType<V = unknown> extends QapiType<V> {
  readonly kind: "alternate";
  readonly doc: string;
  /** At most one of each JSON type. */
  readonly choices: readonly QapiType[];
}

/** `choices` are given by a function, so that types may hold each other. */
export function alternate<V>(
  name: string,
  doc: string,
  choices: () => readonly QapiType[],
): AlternateType<V> {
  return {
    kind: "alternate",
    name,
    doc,
    get choices() {
      return choices();
    },
  };
}
