// `secret` objects: passwords, as data of the command line or in a file, in base64 or encrypted where wanted.

import { createDecipheriv } from "node:crypto";
import { BlockError } from "../base/errors.ts";
import { MiB } from "../base/units.ts";
import { readWholeFile } from "../sys/whole-file.ts";

export interface SecretOptions {
  readonly data?: string;
  readonly file?: string;
  readonly format?: "raw" | "base64";
  /** Secret that this one is encrypted with (AES-256-CBC): 32 bytes. */
  readonly keyid?: string;
  /** 16 bytes in base64. */
  readonly iv?: string;
}

const KEY_BYTES = 32;
const IV_BYTES = 16;
/** Whoever may name a file may name a very long one. */
const FILE_BYTES_MAX = 1 * MiB;

/** @param other gives a secret by its id. @throws BlockError EINVAL in QEMU's words */
export function secretValue(options: SecretOptions, other: (id: string) => Buffer): Buffer {
  const { keyid, iv } = options;
  const given = readSecret(options);
  const bytes = options.format === "base64" ? fromBase64(given.toString("latin1"), "the secret") : given;
  if (keyid === undefined) {
    if (iv !== undefined) throw new BlockError("EINVAL", "IV should not be set if keyid is not set");
    return bytes;
  }
  const key = other(keyid);
  if (key.length !== KEY_BYTES) {
    throw new BlockError("EINVAL", `Key '${keyid}' has ${key.length} bytes; a key has ${KEY_BYTES}`);
  }
  if (iv === undefined) throw new BlockError("EINVAL", "IV is required to decrypt secret");
  const vector = fromBase64(iv, "'iv'");
  if (vector.length !== IV_BYTES) {
    throw new BlockError("EINVAL", `IV should be ${IV_BYTES} bytes in length not ${vector.length}`);
  }
  try {
    const decipher = createDecipheriv("aes-256-cbc", key, vector);
    return Buffer.concat([decipher.update(bytes), decipher.final()]);
  } catch (error) {
    throw new BlockError("EINVAL", `The secret cannot be decrypted with key '${keyid}' and this IV`, error);
  }
}

function readSecret({ data, file }: SecretOptions): Buffer {
  if (data !== undefined && file !== undefined) {
    throw new BlockError("EINVAL", "'file' and 'data' are mutually exclusive");
  }
  if (data !== undefined) return Buffer.from(data);
  if (file === undefined) throw new BlockError("EINVAL", "Either 'file' or 'data' must be provided");
  return readWholeFile(file, FILE_BYTES_MAX, `Unable to read ${file}: Failed to open file “${file}”`);
}

function fromBase64(text: string, what: string): Buffer {
  const compact = text.replace(/\s/g, "");
  if (/^[A-Za-z0-9+/]*={0,2}$/.test(compact)) return Buffer.from(compact, "base64");
  throw new BlockError("EINVAL", `Unable to base64 decode ${what}`);
}
