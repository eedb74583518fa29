"""Forty toy images with two references each, captions that are right, and captions that say too little."""

from __future__ import annotations

FAST = ("BLEU", "ROUGE-L", "CIDEr")  # the metrics that need no Java
ANIMALS = ("dog", "cat", "bird", "horse")
DEEDS = ("runs", "sits", "sleeps", "jumps", "eats", "drinks", "looks", "waits", "swims", "stands")
REFERENCES = {
    f"{animal}-{deed}.jpg": [f"a {animal} {deed} on the green grass", f"the small {animal} {deed} in a field today"]
    for animal in ANIMALS
    for deed in DEEDS
}
GOOD = {image: captions[0] for image, captions in REFERENCES.items()}
WEAK = {image: f"a {image.split('-')[0]} on the green grass" for image in REFERENCES}
