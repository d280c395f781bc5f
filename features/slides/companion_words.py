"""Words for the pictures that accompany a slide, in the languages of scanners and of notes."""

from __future__ import annotations

__all__ = ["CAMERA", "COMPANION"]

COMPANION = (
    "label|macro|makro|overview|preview|thumb(?:nail)?|etikett(?:en?)?|etiquette|etiqueta|étiquette"
    "|übersicht(?:sbild)?|vorschau(?:bild)?|aperçu|miniatur[ae]?|anteprima|etichetta"
    "|vista[ _-]previa|обзор|этикетка|миниатюра|макро(?!фаг)|标签|宏观|概览|缩略图|ラベル|マクロ"
)
"""Pattern of a label, a photograph of the whole glass, or a reduced copy, in Unicode's NFC."""
CAMERA = "camera|kamera|cámara|câmera|caméra|fotocamera|камера|相机|カメラ"
"""Pattern of the camera of a scanner."""
