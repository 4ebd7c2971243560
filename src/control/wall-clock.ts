/** What time it is for people: microseconds since 1970. A parameter like every clock. */
export interface WallClock {
  nowMicroseconds(): number;
}

export const systemWallClock: WallClock = {
  nowMicroseconds: () => Math.floor((performance.timeOrigin + performance.now()) * 1000),
};
