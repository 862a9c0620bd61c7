// A name in a table goes on in the next line behind a part of it, never inside one (wide.css: where). On a narrow screen
// a table that is wider all the same has a card for each row.
const tables = [...document.querySelectorAll(".md-typeset table:not([class])")];
const PART = /(?<=\s)(?=\S)|(?<=\/|::|[a-z_]\.)(?=[A-Za-z_])/;
const SENTENCE = 40; // letters: a longer part is a test's name, which may go on behind any word

for (const table of tables) {
  const heads = [...table.querySelectorAll("thead th")].map((head) => head.textContent);
  for (const cell of table.querySelectorAll("tbody td")) cell.dataset.head = heads[cell.cellIndex];
  for (const code of table.querySelectorAll("td code")) if (!code.firstElementChild) divide(code);
}

function divide(code) {
  const found = [];
  for (const part of code.textContent.split(PART)) {
    part.split(/(?<=\w_)(?=\w)/).forEach((word, place) => {
      const gap = document.createElement("wbr");
      if (place > 0 && part.length < SENTENCE) gap.className = "inner";
      const whole = document.createElement("span");
      whole.textContent = word;
      found.push(gap, whole);
    });
  }
  code.replaceChildren(...found.slice(1));
}

function fit() {
  for (const table of tables) {
    delete table.dataset.cards;
    const room = table.closest("article").clientWidth;
    if (matchMedia("(max-width: 60em)").matches && table.offsetWidth > room) table.dataset.cards = "";
  }
}

addEventListener("load", fit);
addEventListener("resize", fit);
