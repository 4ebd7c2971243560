import { once } from "node:events";
import net from "node:net";
import os from "node:os";
import path from "node:path";
import { describe, expect, it } from "vitest";
import { sendNow } from "./send.ts";

async function pair(): Promise<{ near: net.Socket; far: net.Socket; close: () => void }> {
  const name = path.join(os.tmpdir(), `strata-send-${process.pid}-${Math.floor(performance.now() * 1000)}`);
  const server = net.createServer({ pauseOnConnect: true });
  server.listen(name);
  await once(server, "listening");
  const far = net.connect(name);
  const [near] = (await once(server, "connection")) as [net.Socket];
  const close = () => {
    far.destroy();
    near.destroy();
    server.close();
  };
  return { near, far, close };
}

describe("sending at once", () => {
  it("hands one piece and several to the peer in their order", async () => {
    const { near, far, close } = await pair();
    expect(sendNow(near, [Buffer.from("a")])).toBe(1);
    expect(sendNow(near, [Buffer.from("bc"), Buffer.from("def")])).toBe(5);
    let text = "";
    while (text.length < 6) text += String((await once(far, "data"))[0]);
    expect(text).toBe("abcdef");
    close();
  });

  it("takes as much as there is room for, then nothing", async () => {
    const { near, far, close } = await pair();
    const large = Buffer.alloc(8 * 1024 * 1024, 7);
    const taken = sendNow(near, [large]);
    expect(taken).toBeGreaterThan(0);
    expect(taken).toBeLessThan(large.length);
    expect(sendNow(near, [large])).toBe(0);
    far.resume();
    close();
  });

  it("never comes past what the stream has to write", async () => {
    const { near, close } = await pair();
    near.write(Buffer.alloc(8 * 1024 * 1024));
    expect(near.writableLength).toBeGreaterThan(0);
    expect(sendNow(near, [Buffer.from("x")])).toBe(0);
    close();
  });

  it("takes nothing for a socket that is closed, or that the peer has left", async () => {
    const { near, far, close } = await pair();
    far.destroy();
    near.resume();
    await once(near, "end");
    expect(sendNow(near, [Buffer.from("x")])).toBe(0);
    near.destroy();
    expect(sendNow(near, [Buffer.from("x")])).toBe(0);
    close();
  });

  it("takes more pieces than the kernel takes at once in part", async () => {
    const { near, close } = await pair();
    const pieces = Array.from({ length: 3000 }, () => Buffer.from("p"));
    expect(sendNow(near, pieces)).toBe(1024);
    close();
  });
});
