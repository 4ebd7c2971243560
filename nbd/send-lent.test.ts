import net from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, it } from "vitest";
import { sendLent } from "./send-lent.ts";

it("ends the connection whose lent data cannot be had any more, and nothing else", async () => {
  const server = net.createServer().listen(join(tmpdir(), `strata-send-lent-${process.pid}`));
  const accepted = new Promise<net.Socket>((resolve) => server.on("connection", resolve));
  const client = net.connect(server.address() as string);
  const socket = await accepted;
  const failed = new Promise((resolve) => socket.on("error", resolve));
  const lost = new Error("the page is gone");
  const lent = {
    bytes: 10,
    moveTo: () => 0,
    take: () => {
      throw lost;
    },
    release: () => {},
  };
  const written: string[] = [];
  expect(sendLent(socket, lent, () => written.push("written"))).toBe(false);
  expect(socket.destroyed).toBe(true);
  expect(await failed).toBe(lost);
  expect(written).toEqual([]);
  client.destroy();
  server.close();
});
