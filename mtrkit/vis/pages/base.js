"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

/** An element with properties; text and attributes are set as such and never read as markup. */
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "text") element.textContent = value;
    else if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** The same for the elements of a drawing. */
function shape(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const percent = (share, digits = 0) => `${(100 * share).toFixed(digits)} %`;
const signed = (value, digits = 1) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(digits)}`;
const rate = (value) => (value === null ? "–" : value < 100 ? value.toPrecision(3) : String(Math.round(value)));
const times = (value) => (value === null ? "–" : `×${value.toFixed(2)}`);
const gflops = (value) => value.toPrecision(value < 1 ? 3 : 4);

function fillFacts(list, facts) {
  for (const [name, value] of Object.entries(facts)) {
    if (value) list.append(make("dt", { text: name }), make("dd", { text: value }));
  }
}

document.querySelector("h1").textContent = data.title;
fillFacts(byId("about"), data.about);
