/** Data of an option that does not follow its layout; the client gets ERR_INVALID with this message. */
export class OptionError extends Error {
  override readonly name = "OptionError";
}

/** Reads the data of one option, which is complete, and never past its end. */
export class OptionReader {
  readonly #data: Buffer;
  #at = 0;

  constructor(data: Buffer) {
    this.#data = data;
  }

  u16(what: string): number {
    return this.#take(2, what).readUInt16BE(0);
  }

  u32(what: string): number {
    return this.#take(4, what).readUInt32BE(0);
  }

  /** A string with its length before it. */
  string32(what: string): Buffer {
    return this.#take(this.u32(`length of the ${what}`), what);
  }

  /** @throws OptionError when bytes are left. */
  end(): void {
    const left = this.#data.length - this.#at;
    if (left > 0) throw new OptionError(`${left} bytes too many in the option's data`);
  }

  #take(bytes: number, what: string): Buffer {
    if (bytes > this.#data.length - this.#at)
      throw new OptionError(`the option's data ends before its ${what}`);
    this.#at += bytes;
    return this.#data.subarray(this.#at - bytes, this.#at);
  }
}

const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** The text of a protocol string, or undefined when it is not UTF-8 or holds a NUL. */
export function protocolText(bytes: Buffer): string | undefined {
  if (bytes.includes(0)) return undefined;
  try {
    return utf8.decode(bytes);
  } catch {
    return undefined;
  }
}
