"""Classification of pictures of any size, with classes that fmscale takes by name.

`files.py`      PNG and Netpbm files as RGB
`spec.py`       `pictures.spec:Crops`: a random crop of a picture as patches
`model.py`      `pictures.model:Classifier`: a transformer over patches
`objective.py`  `pictures.objective:Classify`: cross-entropy of a picture's class
"""
