import { expect, it } from "vitest";
import { toAddress } from "./backend.ts";
import { onFreePort, type SocketAddress } from "./socket-address.ts";

const range = { kind: "inet", host: "127.0.0.1", port: 7, to: 9 } as const;

function taken(...ports: number[]) {
  return async (address: SocketAddress) => {
    const { port } = address as { port: number };
    if (ports.includes(port)) throw Object.assign(new Error(`port ${port} is taken`), { code: "EADDRINUSE" });
    return port;
  };
}

it("listens at the first free port of a range", async () => {
  expect(await onFreePort(range, taken())).toBe(7);
  expect(await onFreePort(range, taken(7, 8))).toBe(9);
  await expect(onFreePort(range, taken(7, 8, 9))).rejects.toThrow("port 9 is taken");
  await expect(onFreePort({ kind: "inet", host: "h", port: 7 }, taken(7))).rejects.toThrow("port 7 is taken");
});

it("gives up at once where the host does not listen for another reason", async () => {
  let attempts = 0;
  const denied = async () => {
    attempts++;
    throw Object.assign(new Error("denied"), { code: "EACCES" });
  };
  await expect(onFreePort(range, denied)).rejects.toThrow("denied");
  expect(attempts).toBe(1);
});

it("takes the range as the reference's options give it, and refuses an empty one", () => {
  const inet = (to: number) => ({ type: "inet", data: { host: "h", port: "7", to } }) as never;
  expect(toAddress(inet(9))).toEqual({ kind: "inet", host: "h", port: 7, to: 9 });
  for (const to of [6, 65536, Number.NaN])
    expect(() => toAddress(inet(to))).toThrow("Failed to create a socket");
});
