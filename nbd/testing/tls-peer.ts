// For tests of TLS: a server with a pre-shared key, and a client that starts TLS by hand.

import net from "node:net";
import tls from "node:tls";
import type { TlsPolicy } from "../tls.ts";
import { ACK, GREETING_BYTES, OPTS, onCleanUp, option, optionReply, Peer, u32 } from "./peer.ts";

export const USER = "alice";
export const KEY = Buffer.from("00112233445566778899aabbccddeeff", "hex");
const CIPHERS = "kECDHEPSK:TLS_AES_128_GCM_SHA256";

/** Lets USER in. */
export function pskPolicy(refusal: TlsPolicy["refusal"] = () => undefined): TlsPolicy {
  const keyOf = (_: tls.TLSSocket, user: string) => (user === USER ? KEY : null);
  return { options: { ciphers: CIPHERS, pskCallback: keyOf }, refusal };
}

/** A socket that has sent its flags and `sent`, and whose greeting and `answer` have come. */
export async function answered(path: string, sent: Buffer, answer: Buffer): Promise<net.Socket> {
  const socket = net.connect({ path });
  onCleanUp(() => void socket.destroy());
  socket.on("error", () => {});
  socket.write(Buffer.concat([u32(3), sent]));
  const bytes = GREETING_BYTES + answer.length;
  let come = Buffer.alloc(0);
  await new Promise<void>((resolve, reject) => {
    const told = (chunk: Buffer) => {
      come = Buffer.concat([come, chunk]);
      if (come.length < bytes) return;
      socket.off("data", told).pause();
      resolve();
    };
    socket.on("data", told).once("close", () => reject(new Error("the server closed")));
  });
  if (!come.subarray(GREETING_BYTES).equals(answer)) throw new Error(`other answer: ${come.toString("hex")}`);
  return socket;
}

/** Starts TLS behind `before` (an exchange in the clear) and gives the secure end. */
export async function secured(
  path: string,
  options: { readonly before?: [Buffer, Buffer]; readonly client?: tls.ConnectionOptions } = {},
): Promise<Peer> {
  const [sent, answer] = options.before ?? [Buffer.alloc(0), Buffer.alloc(0)];
  const startTls = option(OPTS.STARTTLS);
  const ack = optionReply(OPTS.STARTTLS, ACK);
  const plain = await answered(path, Buffer.concat([sent, startTls]), Buffer.concat([answer, ack]));
  const client = tls.connect({
    socket: plain,
    ciphers: CIPHERS,
    pskCallback: () => ({ identity: USER, psk: KEY }),
    checkServerIdentity: () => undefined,
    ...options.client,
  });
  onCleanUp(() => void client.destroy());
  const peer = new Peer(client);
  await new Promise((resolve, reject) => client.once("secureConnect", resolve).once("error", reject));
  return peer;
}
