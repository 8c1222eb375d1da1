"""The notebook's study: its figures beside those this run computes.

"The notebook", here and everywhere in igap, is the research notebook that asked igap's question. On GPT-2 small and the
indirect object identification task it compares Integrated Gradients, by Captum, with activation patching of every head
and MLP neuron, ablates the heads on which they disagree, and asks which counterfactual prompts would make attribution
methods highlight a given component. `published` has the figures it printed, `original_code` what its code computed.
"""
