"use strict";
// Follows what the page shows: when the server says that it has changed, the page is asked for again and put in place.
(() => {
  const parts = ["header", "main", "footer"];
  const address = document.currentScript.dataset.follows;
  let shown = document.currentScript.dataset.version;
  let asking = false;
  let again = false;

  const say = (text) => {
    const place = document.getElementById("live");
    if (place) place.textContent = text;
  };

  // Plots stay the elements that they were: they take new data without flickering.
  const keepPlots = (fresh) => {
    for (const empty of fresh.querySelectorAll("[id^='plot-']")) {
      const drawn = document.getElementById(empty.id);
      if (drawn) empty.replaceWith(drawn);
    }
  };

  const put = (fresh) => {
    const opened = [...document.querySelectorAll("details")].map((each) => each.open);
    const ticked = new Set([...document.querySelectorAll("input:checked")].map((each) => each.value));
    const focused = document.activeElement?.getAttribute("href") || document.activeElement?.getAttribute("aria-label");
    const [x, y] = [scrollX, scrollY];
    keepPlots(fresh);
    for (const part of parts) {
      const [old, anew] = [document.querySelector("body > " + part), fresh.querySelector("body > " + part)];
      if (old && anew) old.replaceWith(anew);
    }
    document.title = fresh.title;
    shown = fresh.querySelector("script[data-version]").dataset.version;
    document.getElementById("figures").textContent = fresh.getElementById("figures").textContent;
    [...document.querySelectorAll("details")].forEach((each, place) => { each.open = opened[place] ?? each.open; });
    for (const box of document.querySelectorAll("input[type=checkbox]")) box.checked = ticked.has(box.value);
    if (focused) [...document.querySelectorAll("a[href], [aria-label]")].find((each) => (each.getAttribute("href") || each.getAttribute("aria-label")) === focused)?.focus({ preventScroll: true });
    scrollTo(x, y);
    dispatchEvent(new Event("figures"));
  };

  const ask = async () => {
    if (asking) { again = true; return; }
    // What somebody is typing is not taken away.
    const typing = (box) => box === document.activeElement || box.value !== box.defaultValue;
    if ([...document.querySelectorAll("input[inputmode]")].some(typing)) { setTimeout(ask, 2000); return; }
    asking = true;
    try {
      const answer = await fetch(location.href, { cache: "no-store" });
      if (answer.ok) {
        put(new DOMParser().parseFromString(await answer.text(), "text/html"));
        say("Updated " + new Date().toLocaleTimeString() + ".");
      } else {
        say(answer.status === 403 ? "The server was started again: open the address that it printed." : "The study cannot be read now (" + answer.status + ").");
      }
    } catch {
      say("The server does not answer. It may have been ended.");
    }
    asking = false;
    if (again) { again = false; ask(); }
  };

  // A hidden page lets go: a browser keeps few connections to one server, and nobody sees what would be drawn.
  let changes = null;
  const follow = () => {
    if (document.hidden || changes) return;
    changes = new EventSource(address);
    changes.addEventListener("hello", (event) => {
      say("Following: this page changes with what it shows.");
      if (event.data !== JSON.stringify(shown)) ask(); // it changed before, or while the connection was gone
    });
    changes.addEventListener("changed", (event) => { if (event.data !== JSON.stringify(shown)) ask(); });
    changes.addEventListener("gone", () => { changes.close(); say("The study is gone."); });
    changes.addEventListener("error", () => say("The server does not answer. It may have been ended, or started again."));
  };
  follow();
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) { changes?.close(); changes = null; } else { follow(); }
  });
})();
