// A name in a table goes on in the next line behind a part of it, never inside one (wide.css: where). On a narrow screen
// a table that is wider all the same has a card for each row.
const tables = [...document.querySelectorAll(".md-typeset table:not([class])")];
const PART = /(?<=\s)(?=\S)|(?<=[\w.-]{2}\/|::)(?=\w)|(?<=[a-z_]\.)(?=[A-Za-z_])(?!(?:ya?ml|jsonl?|py|md)\b)/;
const SENTENCE = 40; // letters: a longer part is a test's name, which may go on behind any word

for (const table of tables) {
  const heads = [...table.querySelectorAll("thead th")].map((head) => head.textContent);
  for (const cell of table.querySelectorAll("tbody td")) {
    cell.dataset.head = heads[cell.cellIndex];
    cell.classList.toggle("text", cell.textContent.length > 60);
  }
  for (const code of table.querySelectorAll("td code")) if (!code.firstElementChild) divide(code);
}

// Nor is an option broken behind its hyphens, here in a line of text.
for (const code of document.querySelectorAll(".md-typeset :is(p, li) code:not(pre code, td code)")) {
  if (code.firstElementChild || !code.textContent.includes("--")) continue;
  code.replaceChildren(...code.textContent.split(/(?=\s)|(?<=\s)/).map(unbroken));
}

function unbroken(word) {
  if (!word.startsWith("--")) return word;
  const option = document.createElement("span");
  option.className = "option";
  option.append(word);
  return option;
}

function divide(code) {
  const found = [];
  for (const part of code.textContent.split(PART)) {
    const whole = document.createElement("span");
    if (part.length >= SENTENCE) whole.className = "long";
    const words = part.split(/(?<=\w_)(?=\w)/);
    whole.append(...words.flatMap((word) => [document.createElement("wbr"), unbroken(word)]).slice(1));
    found.push(document.createElement("wbr"), whole);
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
