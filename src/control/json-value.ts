/**
 * A value of QEMU's JSON. Integers are numbers where that is exact and bigints up to 64 bits beyond; what was
 * written with a fraction or an exponent, or does not fit 64 bits, stays as its text. Objects have no
 * prototype.
 */
export type JsonValue = null | boolean | number | bigint | string | JsonFloat | JsonValue[] | JsonObject;

export interface JsonObject {
  [member: string]: JsonValue;
}

/** A number that is no integer; its text is kept so that it goes back as it came. */
export class JsonFloat {
  readonly text: string;

  constructor(text: string) {
    this.text = text;
  }
}

export function isJsonObject(value: unknown): value is JsonObject {
  return (
    typeof value === "object" && value !== null && !Array.isArray(value) && !(value instanceof JsonFloat)
  );
}

export function emptyObject(): JsonObject {
  return Object.create(null) as JsonObject;
}
