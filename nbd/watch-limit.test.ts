import { expect, it } from "vitest";
import { limitWatches } from "./watch-limit.ts";

it("watches so many clients at a time; who is too many is not, until another watch has ended", () => {
  const log: string[] = [];
  const watch = limitWatches((descriptor) => {
    if (descriptor < 0) return undefined;
    log.push(`open ${descriptor}`);
    return {
      unreadBytes: () => descriptor,
      socketClosed: () => log.push(`shut down ${descriptor}`),
      close: () => log.push(`close ${descriptor}`),
    };
  }, 2);
  expect(watch(-1)).toBeUndefined();
  const first = watch(1);
  const second = watch(2);
  expect([first?.unreadBytes(), second?.unreadBytes(), watch(3)]).toEqual([1, 2, undefined]);
  second!.socketClosed();
  expect(watch(3)).toBeUndefined();
  second!.close();
  expect(watch(3)?.unreadBytes()).toBe(3);
  expect(watch(4)).toBeUndefined();
  expect(log).toEqual(["open 1", "open 2", "shut down 2", "close 2", "open 3"]);
});
