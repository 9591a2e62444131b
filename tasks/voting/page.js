"use strict";
(() => {
  const FORMAT = "tunetrail votes 1";
  const SIDES = ["first", "second", "tie"];
  const KEYS = { 1: "first", ArrowLeft: "first", 2: "second", ArrowRight: "second", 0: "tie", " ": "tie" };
  const $ = (id) => document.getElementById(id);

  const source = $("payload");
  const payload = JSON.parse(source.textContent);
  const shown = sha256(source.textContent);
  if (shown !== source.dataset.export) {
    return warn("This page was altered since it was made. Ask for a new copy; votes on it would be refused.");
  }
  const place = "tunetrail-review-" + shown;
  let state = restore();
  show();

  // What was voted, in order: undo takes the last away. Others who voted in this browser keep theirs.
  function restore() {
    const fresh = { person: "", votes: [], others: [] };
    try {
      const kept = JSON.parse(localStorage.getItem(place));
      if (!kept) return fresh;
      const others = (kept.others || []).map(([person, votes]) => [String(person), sound(votes)]);
      return { person: String(kept.person), votes: sound(kept.votes), others };
    } catch {
      return fresh;
    }
  }

  function sound(votes) {
    const seen = new Set();
    return votes.filter(([pair, side]) => {
      const ok = Number.isInteger(pair) && payload.pairs[pair] && SIDES.includes(side) && !seen.has(pair);
      seen.add(pair);
      return ok;
    });
  }

  function keep() {
    try {
      localStorage.setItem(place, JSON.stringify(state));
    } catch {
      warn("This browser does not keep your progress. Download your votes before you close the page.");
    }
  }

  function warn(text) {
    $("banner").textContent = text;
    $("banner").hidden = false;
  }

  function next() {
    const done = new Set(state.votes.map(([pair]) => pair));
    return payload.pairs.findIndex((_, pair) => !done.has(pair));
  }

  function show(focus) {
    const pair = next();
    const screen = !state.person ? "start" : pair < 0 ? "done" : "compare";
    for (const name of ["start", "compare", "done"]) $(name).hidden = name !== screen;
    for (const name of document.querySelectorAll(".person")) name.textContent = state.person;
    for (const button of document.querySelectorAll(".undo")) button.disabled = !state.votes.length;
    for (const button of document.querySelectorAll(".download")) button.disabled = !state.votes.length;
    if (screen === "compare") {
      fill(pair);
      if (focus) $("title").focus({ preventScroll: true });
    } else if (screen === "done") {
      const count = (side) => state.votes.filter(([, voted]) => voted === side).length;
      const total = state.votes.length;
      $("summary").textContent =
        `You compared ${total === 1 ? "one pair" : `all ${total} pairs`} and called ${count("tie")} of them a tie.`;
      if (focus) $("thanks").focus({ preventScroll: true });
    }
    if (focus) window.scrollTo(0, 0);
  }

  // Only textContent: whatever a model wrote is shown as text, never as markup.
  function fill(pair) {
    const { request, first, second } = payload.pairs[pair];
    const done = state.votes.length;
    $("title").textContent = `${done + 1} of ${payload.pairs.length}: which is better?`;
    $("progress").value = done;
    $("request").replaceChildren(...request.map(turn));
    write($("first"), first);
    write($("second"), second);
  }

  function turn({ role, content }) {
    const block = document.createElement("div");
    block.className = "turn";
    const who = document.createElement("p");
    who.className = "role";
    who.textContent = { user: "Request", system: "Instruction", assistant: "Earlier answer" }[role] || role;
    const text = document.createElement("div");
    text.className = "text";
    text.dir = "auto";
    write(text, content);
    block.append(who, text);
    return block;
  }

  function write(element, text) {
    const empty = !text.trim();
    element.textContent = empty ? "(an empty answer)" : text;
    element.classList.toggle("empty", empty);
  }

  function vote(side) {
    state.votes.push([next(), side]);
    keep();
    say({ first: "Answer 1.", second: "Answer 2.", tie: "Tie." }[side]);
    show(true);
  }

  function undo() {
    if (!state.votes.length) return;
    state.votes.pop();
    keep();
    say("Undone.");
    show(true);
  }

  function say(text) {
    $("told").textContent = text;
  }

  function download() {
    const votes = Object.fromEntries(state.votes);
    const lines = Object.entries(votes).map(([pair, side]) => `${pair} ${side}`);
    const file = {
      format: FORMAT,
      version: payload.version,
      export: shown,
      person: state.person,
      votes,
      sha256: sha256([FORMAT, payload.version, shown, state.person, ...lines].join("\n")),
    };
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([JSON.stringify(file, null, 1) + "\n"], { type: "application/json" }));
    const who = state.person.split("@")[0].replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40) || "me";
    link.download = `votes-${shown.slice(0, 8)}-${who}.json`;
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    say("Downloaded.");
  }

  $("begin").addEventListener("submit", (event) => {
    event.preventDefault();
    const person = $("person").value.replace(/\s+/g, " ").trim();
    if (!person) return;
    const before = state.others.find(([other]) => other === person);
    state.others = state.others.filter((other) => other !== before);
    state.person = person;
    state.votes = before ? before[1] : [];
    keep();
    show(true);
  });
  for (const button of document.querySelectorAll(".other")) {
    button.addEventListener("click", () => {
      state = { person: "", votes: [], others: [...state.others, [state.person, state.votes]] };
      keep();
      show(true);
      $("person").value = "";
      $("person").focus();
    });
  }
  for (const button of document.querySelectorAll("[data-side]")) {
    button.addEventListener("click", () => vote(button.dataset.side));
  }
  for (const button of document.querySelectorAll(".undo")) button.addEventListener("click", undo);
  for (const button of document.querySelectorAll(".download")) button.addEventListener("click", download);

  document.addEventListener("keydown", (event) => {
    if (event.repeat || event.ctrlKey || event.metaKey || event.altKey || !$("keys").checked) return;
    if (!state.person || event.target.matches("input:not([type=checkbox])")) return;
    const back = event.key === "Backspace" || event.key.toLowerCase() === "u";
    // A button or box that has the focus keeps its own keys.
    if (event.key === " " && event.target.matches("button, summary, input")) return;
    if (back) {
      event.preventDefault();
      undo();
    } else if (event.key in KEYS && !$("compare").hidden) {
      event.preventDefault();
      vote(KEYS[event.key]);
    }
  });
  window.addEventListener("storage", (event) => {
    if (event.key === place) {
      state = restore();
      show();
    }
  });

  // FIPS 180-4. crypto.subtle would do, but not on a page that a phone opens from a file.
  function sha256(text) {
    const bytes = new TextEncoder().encode(text);
    const words = new Uint32Array((((bytes.length + 8) >> 6) + 1) * 16);
    bytes.forEach((byte, at) => (words[at >> 2] |= byte << (24 - (at & 3) * 8)));
    words[bytes.length >> 2] |= 0x80 << (24 - (bytes.length & 3) * 8);
    words[words.length - 2] = Math.floor(bytes.length / 0x20000000);
    words[words.length - 1] = bytes.length << 3;
    const root = (number, power) => (Math.pow(number, power) % 1) * 0x100000000;
    const primes = [];
    for (let number = 2; primes.length < 64; number++) {
      if (primes.every((prime) => number % prime)) primes.push(number);
    }
    const constants = Uint32Array.from(primes, (prime) => root(prime, 1 / 3));
    const hash = Uint32Array.from(primes.slice(0, 8), (prime) => root(prime, 1 / 2));
    const turned = (word, by) => (word >>> by) | (word << (32 - by));
    const w = new Uint32Array(64);
    for (let block = 0; block < words.length; block += 16) {
      w.set(words.subarray(block, block + 16));
      for (let t = 16; t < 64; t++) {
        const a = w[t - 15];
        const b = w[t - 2];
        w[t] = w[t - 16] + w[t - 7]
          + (turned(a, 7) ^ turned(a, 18) ^ (a >>> 3)) + (turned(b, 17) ^ turned(b, 19) ^ (b >>> 10));
      }
      let [a, b, c, d, e, f, g, h] = hash;
      for (let t = 0; t < 64; t++) {
        const one = (h + (turned(e, 6) ^ turned(e, 11) ^ turned(e, 25)) + ((e & f) ^ (~e & g)) + constants[t] + w[t]) | 0;
        const two = ((turned(a, 2) ^ turned(a, 13) ^ turned(a, 22)) + ((a & b) ^ (a & c) ^ (b & c))) | 0;
        [a, b, c, d, e, f, g, h] = [(one + two) | 0, a, b, c, (d + one) | 0, e, f, g];
      }
      [a, b, c, d, e, f, g, h].forEach((word, at) => (hash[at] += word));
    }
    return Array.from(hash, (word) => word.toString(16).padStart(8, "0")).join("");
  }
})();
