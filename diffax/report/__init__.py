"""Reports: from the results of runs to intervals, comparisons, sentences and a page.

The input is plain data: a `spec.Spec`, which says what is asked, and a mapping for each run.
Nothing here knows how a run was made.

`statistics` has intervals, tests and power. `findings` judges paired comparisons and says whether
feature extractors agree. `analysis` holds every number of a report, and `verdict` puts them into
sentences. `figures` draws, `sections` fills a `page`, which is written as HTML and as Markdown, and
`build` writes the files.
"""
