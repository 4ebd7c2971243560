// A generic netlink socket through koffi: three functions of the C library.
//
//   1. Each range is checked against its buffer before an address leaves this file.
//   2. errno is read right after the call that failed; EINTR is repeated.
//   3. The kernel carries a request out inside of send(): its replies are there when that returns, so
//      receiving never waits. Descriptors in a request are those of this process for the same reason.
//   4. A socket here has no address but the one that the kernel gives it, and sends to the kernel only.
//      Processes without rights over the network cannot send to it.

import { closeSync } from "node:fs";
import { assert } from "../base/assert.ts";
import { BlockError } from "../base/errors.ts";
import { Errno, hostError } from "./host-error.ts";
import { type ForeignFunction, type Koffi, loadKoffi } from "./load-koffi.ts";
import {
  decodeMessages,
  encodeRequest,
  errnoOfMessage,
  type GenericRequest,
  type Message,
  MessageType,
} from "./netlink-message.ts";

// sys/socket.h, linux/netlink.h
const AF_NETLINK = 16;
const SOCK_RAW = 3;
const SOCK_CLOEXEC = 0o2000000;
const NETLINK_GENERIC = 16;
const MSG_TRUNC = 0x20;
const MSG_DONTWAIT = 0x40;

/** A status of 1024 nbd devices takes 20 KiB; the kernel's own messages are pages. */
const RECEIVE_BYTES = 256 * 1024;
/** Messages that one request is answered with. */
const REPLIES_MAX = 1000;

/** What is asked of the kernel, without what the socket adds. */
export type Question = Omit<GenericRequest, "sequence">;

/** What netlink users need of a socket. */
export interface NetlinkCalls {
  /**
   * Sends a request; gives its replies without the acknowledgement.
   * @throws BlockError with `what` and the kernel's errno when it refuses
   */
  ask(question: Question, what: string): Message[];
  close(): void;
}

/** A socket, or why there can be none. */
export function openNetlink(): NetlinkCalls | string {
  const koffi = loadKoffi();
  if (typeof koffi === "string") return koffi;
  try {
    return new NetlinkSocket(koffi);
  } catch (error) {
    return error instanceof Error ? error.message.split("\n")[0]! : String(error);
  }
}

class NetlinkSocket implements NetlinkCalls {
  readonly #koffi: Koffi;
  readonly #send: ForeignFunction;
  readonly #recv: ForeignFunction;
  readonly #fd: number;
  readonly #received = Buffer.from(new ArrayBuffer(RECEIVE_BYTES));
  #sequence = 0;
  #closed = false;

  constructor(koffi: Koffi) {
    const library = koffi.load(null);
    this.#koffi = koffi;
    this.#send = library.func("send", "int64", ["int", "uintptr", "uint64", "int"]);
    this.#recv = library.func("recv", "int64", ["int", "uintptr", "uint64", "int"]);
    const socket = library.func("socket", "int", ["int", "int", "int"]);
    this.#fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_GENERIC);
    if (this.#fd < 0) throw hostError(koffi.errno(), "cannot open a netlink socket");
  }

  ask(question: Question, what: string): Message[] {
    assert(!this.#closed, "the netlink socket is closed");
    this.#sequence++;
    const request = encodeRequest({ ...question, sequence: this.#sequence });
    const sent = this.#repeated(this.#send, request, request.length, 0);
    if (sent < 0) throw hostError(-sent, what);
    const replies: Message[] = [];
    while (replies.length < REPLIES_MAX) {
      for (const message of this.#receive(what)) {
        // What belongs to an earlier request that ended with an error.
        if (message.sequence !== this.#sequence) continue;
        if (message.type !== MessageType.ERROR) {
          replies.push(message);
          continue;
        }
        const errno = errnoOfMessage(message);
        if (errno !== 0) throw hostError(errno, what);
        return replies;
      }
    }
    throw new BlockError("EIO", `${what}: the kernel's answer has no end`);
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    closeSync(this.#fd);
  }

  #receive(what: string): Message[] {
    const buffer = this.#received;
    const bytes = this.#repeated(this.#recv, buffer, buffer.length, MSG_DONTWAIT | MSG_TRUNC);
    if (bytes < 0) throw hostError(-bytes, `${what}: no answer of the kernel`);
    if (bytes > buffer.length) throw new BlockError("EIO", `${what}: the kernel's answer is too long`);
    // A copy: the buffer takes the next answer.
    return decodeMessages(Buffer.from(buffer.subarray(0, bytes)));
  }

  /** send or recv over [0, bytes) of `buffer`; below zero: -errno. */
  #repeated(call: ForeignFunction, buffer: Buffer, bytes: number, flags: number): number {
    assert(bytes > 0 && bytes <= buffer.length, "a range outside of its buffer");
    const address = Number(this.#koffi.address(buffer));
    for (;;) {
      const result = call(this.#fd, address, bytes, flags);
      if (result >= 0) return result;
      const errno = this.#koffi.errno();
      if (errno !== Errno.EINTR) return -errno;
    }
  }
}
