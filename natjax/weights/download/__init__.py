"""Download of weights: by addresses (`cache`) and from the Hugging Face hub (`hub`).

The published files lie on plain HTTPS, which the standard library speaks. What is here is policy,
which no library has all of: only HTTPS, also behind redirects, and an end even where a server has
none (`transport`); one process downloads and the others wait, a part that was interrupted is gone
on with if the server still has the same file, and nothing is written through a link that somebody
else has planted (`partial`).
"""
